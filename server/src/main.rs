//! The `multiraft` program: reads the command line, does it, reports what failed.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use multiraft_server::cli::{Cli, Command, Failure, run_client, start_logging};
use multiraft_server::{bench, dev, log_tool, serve};

fn main() -> ExitCode {
    abort_on_panic();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}

/// A broken invariant ends the whole process: all groups share memory and log, and a thread that is
/// missing would be silence where peers and clients wait.
fn abort_on_panic() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        std::process::abort();
    }));
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| Failure::node("start the async runtime", source))?;
    runtime.block_on(async {
        match command {
            Command::Serve(args) => {
                start_logging(&args.logging)?;
                serve::run(*args).await
            }
            Command::Dev(args) => {
                start_logging(&args.logging)?;
                dev::run(*args).await
            }
            Command::Client(command) => run_client(command).await,
            Command::Log(args) => log_tool::run(args),
            Command::Bench(args) => bench::run(args).await,
        }
    })
}
