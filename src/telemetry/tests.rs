use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Nothing listens there: the connection is made only when spans are sent.
fn tracing(sample: Option<f64>) -> Tracing {
    Tracing::open(&Export { endpoint: "http://127.0.0.1:1".into(), sample }).expect("opens")
}

fn header(tracing: &Tracing, trace: &Trace, name: &str) -> Option<String> {
    tracing.headers(trace).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_and_a_broken_one_begins_anew() {
    let tracing = tracing(None);
    let trace = tracing.arrived(Some(PARENT), Some("vendor=1,other=2"));
    assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
    let parent = header(&tracing, &trace, TRACEPARENT).expect("a header");
    assert!(
        parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent.ends_with("-01"),
        "{parent}"
    );
    assert!(!parent.contains("b7ad6b7169203331"), "the answer names this server's span: {parent}");
    assert_eq!(header(&tracing, &trace, TRACESTATE).as_deref(), Some("vendor=1,other=2"));
    for broken in [None, Some(""), Some("00-0-0-01"), Some("ff-zz"), Some("\u{e9}")] {
        let trace = tracing.arrived(broken, Some("vendor=1"));
        assert!(trace.is_recorded());
        assert_ne!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(header(&tracing, &trace, TRACESTATE), None, "a state without its parent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_decision_holds_and_the_share_is_for_the_others() {
    let none = tracing(Some(0.0));
    assert!(!none.arrived(None, None).is_recorded());
    assert!(none.arrived(Some(PARENT), None).is_recorded());
    let all = tracing(Some(1.0));
    assert!(all.arrived(None, None).is_recorded());
    let refused = PARENT.replace("-01", "-00");
    let trace = all.arrived(Some(&refused), None);
    assert!(!trace.is_recorded());
    assert!(header(&all, &trace, TRACEPARENT).expect("a header").ends_with("-00"));
}

#[test]
fn moments_before_and_after_the_arrival_are_placed() {
    let clock = Clock { instant: Instant::now(), time: SystemTime::now() };
    let second = Duration::from_secs(1);
    assert_eq!(clock.time(clock.instant + second), clock.time + second);
    let (early, late) = (clock.instant, clock.instant + second);
    let clock = Clock { instant: late, ..clock };
    assert_eq!(clock.time(early), clock.time - second);
}
