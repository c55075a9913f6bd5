//! The binary: exit codes and signals.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

fn verdict(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verdict"));
    command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = verdict(arguments).output().expect("runs");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn wrong_usage_exits_with_2() {
    let (code, said) = run(&["serve", "--prot", "80"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--prot"), "{said}");
    let (code, said) = run(&["serve", "--config", "/nonexistent.toml"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/nonexistent.toml: cannot be read"), "{said}");
    let (code, said) = run(&["serve", "--batch-tokens", "0"]);
    assert_eq!((code, said.trim()), (Some(2), "verdict: batch_tokens: is 0; at least 1 is needed"));
    for filter in ["a=b=c", "warning", "verdct=debug"] {
        // A model that is not there ends a start that goes on.
        let (code, said) = run(&["serve", "--port", "0", "--model", "/nonexistent", "--log", filter]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.starts_with(&format!("verdict: log: {filter:?}")), "{said}");
    }
}

#[test]
fn a_refused_model_exits_with_3() {
    let (code, said) = run(&["serve", "--port", "0", "--admin-port", "0", "--model", "/nonexistent"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.ends_with("verdict: /nonexistent: no such directory\n"), "{said}");
}

#[test]
fn a_taken_port_exits_with_4() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, said) = run(&["serve", "--port", &port, "--admin-port", "0"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port} cannot be bound")), "{said}");
}

/// Ends a process that a failed test left.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port()
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_the_server() {
    let (port, admin) = (free_port().to_string(), free_port().to_string());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full disk");
    let mut command = verdict(&["serve", "--port", &port, "--admin-port", &admin, "--log", "debug"]);
    let mut server = Running(command.stderr(full).spawn().expect("runs"));
    // Without a log there is nothing to wait for but the port.
    let ask = |request: &str| -> Option<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).ok()?;
        std::io::Write::write_all(&mut stream, request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let body = r#"{"query": "q", "documents": ["d"]}"#;
    let score = format!(
        "POST /score HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = loop {
        assert!(server.0.try_wait().expect("known").is_none(), "it ended");
        match ask(&score) {
            Some(answer) if !answer.contains(" 503 ") => break answer,
            _ => std::thread::yield_now(),
        }
    };
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let id = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("runs").success());
    assert_eq!(server.0.wait().expect("ended").code(), Some(0));
}

#[test]
fn memory_that_cannot_be_had_is_named_at_the_start() {
    let arguments = ["serve", "--port", "0", "--admin-port", "0", "--explain-kv-mib", "1000000000000"];
    let (code, said) = run(&arguments);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("KV memory"), "{said}");
}

/// A server that is ready, and what follows in its log.
fn ready(arguments: &[&str]) -> (Running, BufReader<ChildStderr>) {
    let mut command = verdict(&["serve", "--port", "0", "--admin-port", "0", "--log-format", "json"]);
    let mut server = Running(command.args(arguments).spawn().expect("runs"));
    let mut log = BufReader::new(server.0.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("\"ready\"") {
        let before = std::mem::take(&mut line);
        assert_ne!(log.read_line(&mut line).expect("a line"), 0, "it ended before it was ready: {before}");
        serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    }
    (server, log)
}

#[test]
fn a_short_deadline_is_not_that_of_the_probes() {
    drop(ready(&["--max-deadline", "1ms"]));
}

#[test]
fn a_signal_drains_and_exits_with_0() {
    let (mut server, mut log) = ready(&[]);
    let id = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("runs").success());
    let status = server.0.wait().expect("ended");
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("text");
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(rest.contains("\"draining\""), "{rest}");
}
