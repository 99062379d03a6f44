//! The `pontoon` binary: everything is in the library, see [`pontoon::cli`].

fn main() -> std::process::ExitCode {
    pontoon::cli::main()
}
