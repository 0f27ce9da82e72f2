//! `larderd`: Larder's file server.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_server::cli::run()
}
