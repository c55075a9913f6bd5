//! The server under load: one that is there, one that is started for the run, or
//! the real server in this process over a backend that only takes time.

use std::{
    io::BufReader,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::oneshot;
use verdict::{
    backend::{
        Backend,
        stub::{StubBackend, StubControl, StubPace},
    },
    config::{Config, ServeArgs},
    model::Model,
    server::{Phase, Server},
};

use crate::client::Client;

/// How long a model may take to load.
const START: Duration = Duration::from_secs(600);

/// Where it is, and how to end it.
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) admin: Option<String>,
    process: Option<Process>,
    here: Option<(oneshot::Sender<()>, std::thread::JoinHandle<Result<()>>)>,
}

impl Target {
    /// One that runs already.
    pub(crate) fn at(url: String, admin: Option<String>) -> Self {
        Self { url, admin, process: None, here: None }
    }

    /// Starts `program serve` on free ports.
    pub(crate) async fn start(program: &Path, flags: &[String]) -> Result<Self> {
        let child = Command::new(program)
            .arg("serve")
            .args(["--port", "0", "--admin-port", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.with_context(|| format!("{} cannot be run", program.display()))?;
        let mut process = Process { child, told: AtomicBool::new(false) };
        let log = process.child.stderr.take().context("no log")?;
        let (told, ready) = oneshot::channel();
        std::thread::spawn(move || read_log(BufReader::new(log), told));
        let ready = tokio::time::timeout(START, ready).await.context("it did not become ready")?;
        let [address, admin] = ready.context("it ended before it was ready")?;
        let url = format!("http://{}", address.context("it told no address")?);
        let admin = admin.map(|admin| format!("http://{admin}"));
        Ok(Self { url, admin, process: Some(process), here: None })
    }

    /// The real server in this process, over a backend that takes `pace` and computes nothing.
    pub(crate) async fn stub(pace: StubPace, flags: &[String]) -> Result<Self> {
        let settings = settings(flags)?;
        let (told, addresses) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async {
                let failed = |failure: verdict::server::Failure| anyhow::anyhow!("{}", failure.error());
                let server = Server::bind(Config::load(settings)?).await.map_err(failed)?;
                let ports = (server.address(), server.admin_address());
                let mut phases = server.phases();
                let ready = async move {
                    if phases.wait_for(|phase| *phase == Phase::Ready).await.is_ok() {
                        // Whoever asked may have gone: then nobody is told.
                        let _ = told.send(ports);
                    }
                };
                tokio::spawn(ready);
                let stop = async {
                    // A dropped sender is a stop as well.
                    let _ = stopped.await;
                };
                server.run(move || load(pace), stop).await.map_err(failed)
            })
        });
        let (address, admin) = addresses.await.context("the server ended before it was ready")?;
        Ok(Self {
            url: format!("http://{address}"),
            admin: Some(format!("http://{admin}")),
            process: None,
            here: Some((stop, thread)),
        })
    }

    /// Its process, if it is one of its own.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// Sends SIGTERM to the program that was started here, the first time it is called: a program that is
    /// told twice stops at once instead of draining.
    pub(crate) fn tell_to_stop(&self) -> Result<()> {
        let process = self.process.as_ref().context("only what --serve started can be told to stop")?;
        if process.told.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let told = Command::new("kill").args(["-TERM", &process.child.id().to_string()]).status()?;
        anyhow::ensure!(told.success(), "it could not be told to stop");
        Ok(())
    }

    /// Tells it to stop, where it was started here; an error if it does not end cleanly.
    pub(crate) async fn stop(self) -> Result<()> {
        if self.process.is_some() {
            self.tell_to_stop()?;
        }
        if let Some(mut process) = self.process {
            let ended = tokio::task::spawn_blocking(move || process.child.wait());
            let status = tokio::time::timeout(START, ended).await.context("it does not stop")???;
            anyhow::ensure!(status.success(), "it ended with {status}");
        }
        if let Some((stop, thread)) = self.here {
            // It may have ended already; joining tells.
            let _ = stop.send(());
            let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
            joined.map_err(|_| anyhow::anyhow!("the server panicked"))??;
        }
        Ok(())
    }
}

/// A program that was started here; it is killed with whoever started it.
struct Process {
    child: Child,
    /// Whether it was told to stop.
    told: AtomicBool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells where the server is once it is ready, and reads on: a log that nobody reads holds it up.
fn read_log(log: impl std::io::BufRead, told: oneshot::Sender<[Option<SocketAddr>; 2]>) {
    let mut found = [None; 2];
    let mut told = Some(told);
    for line in log.lines().map_while(Result::ok) {
        for (name, found) in ["address=", "admin="].iter().zip(&mut found) {
            let rest = line.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
            *found = rest.and_then(|address| address.parse().ok()).or(*found);
        }
        if line.contains(" ready ")
            && let Some(told) = told.take()
        {
            // Whoever asked may have gone: then nobody is told.
            let _ = told.send(found);
        }
    }
}

fn settings(flags: &[String]) -> Result<ServeArgs> {
    use clap::{Args as _, FromArgMatches as _};
    let command = ServeArgs::augment_args(clap::Command::new("serve"));
    let ports = ["serve", "--port", "0", "--admin-port", "0"].map(String::from);
    let matches = command.try_get_matches_from(ports.iter().chain(flags))?;
    Ok(ServeArgs::from_arg_matches(&matches)?)
}

/// The bundled model's prompts and grades; reasons go on to their limit.
fn load(pace: StubPace) -> verdict::error::Result<(Arc<Model>, Box<dyn Backend>)> {
    let mut model = Model::bundled()?;
    // What a stub scores is a hash.
    model.profile.probes.clear();
    let grades = model.profile.grades.len();
    let control = Arc::new(StubControl::default());
    control.pace(pace);
    let script = model.tokenizer.encode("one two three four five six seven eight nine ten")?;
    let backend = StubBackend::new(grades, script, control);
    Ok((Arc::new(model), Box::new(backend)))
}

/// What `/metrics` says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) async fn read(client: &Client, admin: &str) -> Result<Self> {
        client.get(&format!("{admin}/metrics")).await.map(Self)
    }

    /// A metric by its name and labels, as written; `None` if there is none.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    /// Gauges that say what is held: all zero when nothing is under way. An error if one is not there.
    pub(crate) fn held(&self) -> Result<Vec<(&'static str, f64)>> {
        /// A lane's gauge comes with its first job, so with what counts them.
        const GAUGES: [(&str, Option<&str>); 5] = [
            ("verdict_admitted_pairs", None),
            ("verdict_admitted_tokens", None),
            ("verdict_admitted_explanations", None),
            ("verdict_queue_length{lane=\"score\"}", Some("verdict_pairs_computed_total")),
            ("verdict_queue_length{lane=\"explain\"}", Some("verdict_explain_steps_total")),
        ];
        let mut held = Vec::new();
        for (name, with) in GAUGES {
            let none = with.is_some_and(|count| self.value(count) == Some(0.0)).then_some(0.0);
            let value = self.value(name).or(none);
            let value =
                value.with_context(|| format!("/metrics: there is no {name}, to say what is held"))?;
            if value != 0.0 {
                held.push((name, value));
            }
        }
        Ok(held)
    }
}

/// Waits until the server holds nothing; what it still holds after `patience` is an error.
pub(crate) async fn settled(client: &Client, admin: &str, patience: Duration) -> Result<Metrics> {
    let end = Instant::now() + patience;
    loop {
        let metrics = Metrics::read(client, admin).await?;
        let held = metrics.held()?;
        if held.is_empty() {
            return Ok(metrics);
        }
        if Instant::now() >= end {
            bail!("after {} s without requests it still holds {held:?}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Resident memory of a process on Linux, in MiB.
pub(crate) fn resident_mib(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const HELD: &str = "verdict_admitted_pairs 0\nverdict_admitted_tokens 0\nverdict_admitted_explanations 0\n\
        verdict_queue_length{lane=\"score\"} 0\nverdict_queue_length{lane=\"explain\"} 0\n";

    #[test]
    fn a_metric_that_is_missing_is_not_zero() {
        let metrics = Metrics("verdict_a_total 3\nverdict_ab_total 0\n".into());
        let values = ["verdict_a_total", "verdict_ab_total", "verdict_a"].map(|name| metrics.value(name));
        assert_eq!(values, [Some(3.0), Some(0.0), None]);
    }

    #[test]
    fn what_is_held_has_to_be_told() {
        let held = |text: &str| Metrics(text.into()).held();
        assert_eq!(held(HELD).expect("told"), []);
        let some = HELD.replace("pairs 0", "pairs 2");
        assert_eq!(held(&some).expect("told"), [("verdict_admitted_pairs", 2.0)]);
        let without = |gauge: &str| HELD.replace(&format!("{gauge} 0\n"), "");
        let error = held(&without("verdict_admitted_tokens")).expect_err("not told");
        assert_eq!(error.to_string(), "/metrics: there is no verdict_admitted_tokens, to say what is held");
        let idle = without("verdict_queue_length{lane=\"score\"}");
        held(&idle).expect_err("nothing says that there was no job yet");
        held(&format!("{idle}verdict_pairs_computed_total 3\n")).expect_err("there were some");
        assert_eq!(held(&format!("{idle}verdict_pairs_computed_total 0\n")).expect("none yet"), []);
    }

    #[tokio::test]
    async fn a_page_that_is_not_there_has_no_metrics() {
        let server = Fake::start(|_, _| (404, String::new())).await;
        let client = Client::new(&server.url).expect("a client");
        let error = settled(&client, &server.url, Duration::ZERO).await.expect_err("no page");
        let url = &server.url;
        assert_eq!(error.to_string(), format!("{url}/metrics: answered with 404 Not Found, expected 200 OK"));
    }

    #[tokio::test]
    async fn a_request_that_no_retry_could_help_is_refused_whatever_it_comes_by() {
        use crate::{client::Outcome, scenario::Way, texts::Ask};
        use verdict::server::grpc::pb;
        // A pass takes longer than the deadline.
        let pace = StubPace { overhead: Duration::from_millis(600), token: Duration::ZERO };
        let target = Target::stub(pace, &[]).await.expect("a server");
        let client = Client::new(&target.url).expect("a client");
        let ask = |deadline: &str| Ask {
            body: format!("{{{deadline}\"query\": \"a\", \"documents\": [\"b\"]}}"),
            pairs: 1,
            ..Ask::default()
        };
        let first = client.send(&ask(""), 0).await;
        assert!(matches!(first, Outcome::Ok(_)), "{first:?}");
        let wire = pb::ScoreRequest {
            query: "a".into(),
            documents: vec![pb::Document { text: Some("b".into()), ..pb::Document::default() }],
            deadline_ms: Some(500),
            ..pb::ScoreRequest::default()
        };
        let hurried = ask("\"deadline_ms\": 500, ");
        let called = Ask { way: Way::Grpc, wire: Some(Box::new(wire)), ..hurried.clone() };
        for ask in [hurried, called] {
            let outcome = client.send(&ask, 0).await;
            assert!(matches!(outcome, Outcome::Refused(None)), "{outcome:?}");
        }
        target.stop().await.expect("stopped");
    }
}
