//! The binary: see [`pontoon_jepsen::cli`].

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = pontoon_jepsen::cli::Args::parse();
    ExitCode::from(pontoon_jepsen::cli::run(&args, &mut io::stdout(), &mut io::stderr()))
}
