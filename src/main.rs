//! The program `grad`: parse, call, print. See `grad --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    grad::cli::main()
}
