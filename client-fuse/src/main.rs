//! The command `larder`.

fn main() -> std::process::ExitCode {
    larder_client::cli::main()
}
