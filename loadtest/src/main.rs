//! Open-loop load for a Verdict server: what is sent, how it was answered, and whether that is as expected.

mod arrivals;
mod client;
mod drive;
mod expect;
#[cfg(test)]
mod fake;
mod picture;
mod report;
mod run;
mod scenario;
mod server;
mod tally;
mod texts;

use std::{
    net::ToSocketAddrs as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use verdict::backend::stub::StubPace;

use crate::{run::Run, scenario::Scenario, server::Target};

/// Sends requests at times of their own, whatever becomes of those before, and reports how a server held.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios; the exit code is 1 if something is not as a scenario expects
    Run(RunArgs),
    /// Write results, one or several of a scenario over each other, as one HTML file
    Report {
        /// Results of `run`
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// Where the page goes
        #[arg(long, default_value = "load.html")]
        out: PathBuf,
    },
}

#[derive(Args)]
struct RunArgs {
    /// Scenarios
    #[arg(required = true)]
    scenarios: Vec<PathBuf>,
    /// A server that runs, as http://host:port
    #[arg(long, conflicts_with_all = ["serve", "stub"], required_unless_present_any = ["serve", "stub"])]
    target: Option<String>,
    /// Its admin port, to see what it counts
    #[arg(long, requires = "target")]
    admin: Option<String>,
    /// The `verdict` program, started on free ports for each scenario with the scenario's flags
    #[arg(long, conflicts_with = "stub")]
    serve: Option<PathBuf>,
    /// The real server in this process over a backend that only takes time: so many tokens a second
    #[arg(long, value_name = "TOKENS_PER_SECOND")]
    stub: Option<u32>,
    /// More flags for the server that is started
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    flag: Vec<String>,
    /// Folder of the results, NAME.json each
    #[arg(long)]
    out: Option<PathBuf>,
    /// Allow a target that is not this machine
    #[arg(long)]
    remote: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => tokio::runtime::Runtime::new()
            .context("no runtime")
            .and_then(|runtime| runtime.block_on(run_all(&args))),
        Command::Report { results, out } => write_report(&results, &out).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("verdict-loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything was as expected.
async fn run_all(args: &RunArgs) -> Result<bool> {
    for url in args.target.iter().chain(&args.admin).filter(|_| !args.remote) {
        check_local(url)?;
    }
    let mut fine = true;
    for path in &args.scenarios {
        let scenario = Scenario::read(path)?;
        eprintln!("== {}: {}", scenario.name, scenario.about);
        let flags: Vec<String> = scenario.serve.iter().chain(&args.flag).cloned().collect();
        let target = match (&args.target, &args.serve, args.stub) {
            (Some(url), ..) => Target::at(url.clone(), args.admin.clone()),
            (_, Some(program), _) => Target::start(program, &flags).await?,
            (.., Some(rate)) => {
                let pace = StubPace {
                    overhead: Duration::from_millis(1),
                    token: Duration::from_secs(1) / rate.max(1),
                };
                Target::stub(pace, &flags).await?
            }
            _ => bail!("one of --target, --serve and --stub is needed"),
        };
        let mut run = run::run(&scenario, &target).await?;
        if let Err(error) = target.stop().await {
            run.broken.push(format!("{error:#}"));
        }
        for step in &run.steps {
            step.failures.iter().for_each(|failure| eprintln!("   {failure}"));
        }
        match run.broken.is_empty() {
            true => eprintln!("   as expected"),
            false => run.broken.iter().for_each(|broken| eprintln!("   NOT AS EXPECTED: {broken}")),
        }
        fine &= run.broken.is_empty();
        if let Some(folder) = &args.out {
            std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
            let file = folder.join(format!("{}.json", scenario.name));
            std::fs::write(&file, serde_json::to_vec_pretty(&run)?)
                .with_context(|| format!("{}", file.display()))?;
        }
    }
    Ok(fine)
}

/// Load is for machines of one's own: anything else has to be asked for.
fn check_local(url: &str) -> Result<()> {
    let host = url.strip_prefix("http://").with_context(|| format!("{url:?}: expected http://host:port"))?;
    let host = host.trim_end_matches('/');
    let addresses = host.to_socket_addrs().with_context(|| format!("{url:?}: expected http://host:port"))?;
    for address in addresses {
        if !address.ip().is_loopback() {
            bail!("{url}: {} is not this machine; --remote allows it", address.ip());
        }
    }
    Ok(())
}

fn write_report(results: &[PathBuf], out: &Path) -> Result<()> {
    let runs = results.iter().map(|path| {
        let text = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
        let run: Run = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
        let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok((name, run))
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    std::fs::write(out, report::page(&runs)).with_context(|| format!("{}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loaded_unless_told() {
        check_local("http://127.0.0.1:8080").expect("this machine");
        check_local("http://[::1]:8080/").expect("this machine");
        let error = check_local("http://192.0.2.1:80").expect_err("another machine");
        assert_eq!(
            error.to_string(),
            "http://192.0.2.1:80: 192.0.2.1 is not this machine; --remote allows it"
        );
        check_local("https://127.0.0.1:1").expect_err("not spoken here");
        check_local("127.0.0.1:1").expect_err("no address");
    }
}
