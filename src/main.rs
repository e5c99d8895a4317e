//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    oncefs::cli::main()
}
