//! The binary: exit codes and signals.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStderr, Command, Output, Stdio},
    time::Duration,
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

impl Running {
    fn terminate(&self) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("runs").success());
    }
}

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
    let answer = first_answer(&mut server, &port);
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    server.terminate();
    assert_eq!(server.0.wait().expect("ended").code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let (port, admin) = (free_port().to_string(), free_port().to_string());
    let mut command = verdict(&["serve", "--port", &port, "--admin-port", &admin]);
    let mut server = Running(command.spawn().expect("runs"));
    first_answer(&mut server, &port);
    // More lines than a pipe holds and than wait to be written: each has the request's id.
    let id = "x".repeat(120);
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).expect("connects");
    let bad = format!("GET /{id} HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
    for _ in 0..120 {
        stream.write_all(bad.repeat(100).as_bytes()).expect("sent");
        for _ in 0..100 {
            answer(&mut stream);
        }
    }
    drop(stream);
    let answer = ask(&port, &score()).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    server.terminate();
    assert_eq!(server.0.wait().expect("ended").code(), Some(0));
}

/// Reads one answer of a connection that stays open.
fn answer(stream: &mut TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
}

#[tokio::test]
async fn connections_are_no_more_than_there_are_file_descriptors_for() {
    let (port, admin) = (free_port().to_string(), free_port().to_string());
    let limited = |option: &str| {
        let serve = format!(
            "ulimit {option} 600 && exec {} serve --port {port} --admin-port {admin}",
            env!("CARGO_BIN_EXE_verdict")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &serve]).env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().expect("runs"))
    };
    let mut server = limited("-n");
    first_answer(&mut server, &port);
    // Those that are not taken wait in the system's queue or, where that is full, in vain.
    let connect = || tokio::net::TcpStream::connect(format!("127.0.0.1:{port}"));
    let connects = (0..700).map(|_| tokio::time::timeout(Duration::from_secs(1), connect()));
    let idle = futures::future::join_all(connects).await;
    let alive = ask(&admin, "GET /livez HTTP/1.0\r\n\r\n").expect("an answer");
    assert!(alive.starts_with("HTTP/1.0 200"), "{alive}");
    drop(idle);
    server.terminate();
    server.0.wait().expect("ended");
    let mut log = String::new();
    server.0.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
    assert!(log.contains("too few file descriptors") && log.contains("connections=216"), "{log}");
    let mut server = limited("-S -n");
    first_answer(&mut server, &port);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.0.id())).expect("limits");
    let open = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(open.split_whitespace().nth(3), Some("4480"), "{limits}");
}

fn score() -> String {
    let body = r#"{"query": "q", "documents": ["d"]}"#;
    format!(
        "POST /score HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn ask(port: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Without a log there is nothing to wait for but the port.
fn first_answer(server: &mut Running, port: &str) -> String {
    loop {
        assert!(server.0.try_wait().expect("known").is_none(), "it ended");
        match ask(port, &score()) {
            Some(answer) if !answer.contains(" 503 ") => return answer,
            _ => std::thread::yield_now(),
        }
    }
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
    server.terminate();
    let status = server.0.wait().expect("ended");
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("text");
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(rest.contains("\"draining\""), "{rest}");
}
