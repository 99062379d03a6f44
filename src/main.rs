//! The `pontoon` binary: everything is in the library, see [`pontoon::cli`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pontoon::cli::main()
}
