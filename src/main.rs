//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    // Only in a build for tests.
    let _windows = fail::has_failpoints().then(fail::FailScenario::setup);
    oncefs::cli::main()
}
