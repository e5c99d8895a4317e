//! Compiles the layer that checks what SQLite reads, against the headers of the SQLite that is built in.

fn main() {
    let source = "src/tree/checked/vfs.c";
    println!("cargo:rerun-if-changed={source}");
    let mut build = cc::Build::new();
    // Set by libsqlite3-sys, which compiles SQLite itself.
    if let Ok(include) = std::env::var("DEP_SQLITE3_INCLUDE") {
        build.include(include);
    }
    build
        .file(source)
        .std("c11")
        .warnings(true)
        .compile("oncefs_checked");
}
