//! Where traces go.

use crate::error::{Error, Result};

use super::Settings;

/// Names that every OpenTelemetry program knows, first the one that wins.
const STANDARD: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How it is spoken, likewise.
const PROTOCOL: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Export of traces.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// The collector: `http://` and a host with the port of OTLP over gRPC.
    pub endpoint: String,
    /// Of the requests that begin a trace, the share that is recorded; `None` leaves it to the
    /// standard variable, whose default is all.
    pub sample: Option<f64>,
}

impl Export {
    /// Takes its settings; `None` unless an endpoint is given.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the setting and the value.
    pub(super) fn read(settings: &Settings) -> Result<Option<Self>> {
        if let Some(share) = settings.trace_sample
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::invalid("trace_sample", format!("is {share}; a share is from 0 to 1")));
        }
        let Some(endpoint) = settings.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(None);
        };
        if endpoint.strip_prefix("http://").is_none_or(|host| host.trim_matches('/').is_empty()) {
            let message = format!("{endpoint:?}: expected http:// and a host, such as http://collector:4317");
            return Err(Error::invalid("otlp_endpoint", message));
        }
        Ok(Some(Self { endpoint, sample: settings.trace_sample }))
    }
}

/// The endpoint that the standard variables name, if no setting of ours does.
///
/// # Errors
///
/// `Invalid`, if they ask for a protocol that is not spoken here.
pub(super) fn standard(settings: &mut Settings, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    let first = |names: [&'static str; 2]| {
        let found = names.into_iter().find_map(|name| variable(name).map(|value| (name, value)));
        found.filter(|(_, value)| !value.is_empty())
    };
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    if off || settings.otlp_endpoint.is_some() {
        return Ok(());
    }
    let Some((_, endpoint)) = first(STANDARD) else { return Ok(()) };
    if let Some((name, protocol)) = first(PROTOCOL)
        && protocol != "grpc"
    {
        let message = format!("{protocol:?} is not spoken here; grpc is (port 4317 of a collector)");
        return Err(Error::invalid(name, message));
    }
    settings.otlp_endpoint = Some(endpoint);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: &str, trace_sample: Option<f64>) -> Result<Option<Export>> {
        let otlp_endpoint = Some(endpoint.to_owned());
        Export::read(&Settings { otlp_endpoint, trace_sample, ..Settings::default() })
    }

    #[test]
    fn it_is_off_unless_an_endpoint_is_given() {
        assert_eq!(Export::read(&Settings::default()).expect("valid"), None);
        assert_eq!(read("", None).expect("valid"), None);
        let export = read("http://collector:4317", Some(0.1)).expect("valid").expect("on");
        assert_eq!((export.endpoint.as_str(), export.sample), ("http://collector:4317", Some(0.1)));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let message = |endpoint, sample| read(endpoint, sample).expect_err("refused").message().to_owned();
        for endpoint in ["collector:4317", "https://collector:4317", "http://"] {
            let refused = message(endpoint, None);
            assert!(
                refused.starts_with(&format!("otlp_endpoint: {endpoint:?}: expected http://")),
                "{refused}"
            );
        }
        for share in [-0.1, 1.1, f64::NAN] {
            assert!(message("http://c:1", Some(share)).starts_with("trace_sample: is "), "{share}");
        }
    }

    #[test]
    fn the_standard_variables_are_heard() {
        let endpoint = |ours: Option<&str>, variables: &[(&str, &str)]| {
            let mut settings = Settings { otlp_endpoint: ours.map(str::to_owned), ..Settings::default() };
            let get = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            standard(&mut settings, get).map(|()| settings.otlp_endpoint)
        };
        let all = (STANDARD[1], "http://all:1");
        assert_eq!(endpoint(None, &[]).expect("valid"), None);
        assert_eq!(endpoint(None, &[all]).expect("valid").as_deref(), Some("http://all:1"));
        assert_eq!(
            endpoint(None, &[all, (STANDARD[0], "http://traces:1")]).expect("valid").as_deref(),
            Some("http://traces:1")
        );
        assert_eq!(endpoint(Some("http://ours:1"), &[all]).expect("valid").as_deref(), Some("http://ours:1"));
        assert_eq!(endpoint(None, &[all, ("OTEL_SDK_DISABLED", "true")]).expect("valid"), None);
        assert_eq!(endpoint(None, &[all, ("OTEL_TRACES_EXPORTER", "none")]).expect("valid"), None);
        endpoint(None, &[all, (PROTOCOL[1], "grpc")]).expect("valid");
        let refused = endpoint(None, &[all, (PROTOCOL[1], "http/protobuf")]).expect_err("refused");
        assert_eq!(
            refused.message(),
            "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/protobuf\" is not spoken here; grpc is (port 4317 of a collector)"
        );
    }
}
