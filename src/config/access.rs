//! Who may ask, and from where: API keys, TLS files, origins of pages.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

use super::Settings;

/// API keys. They are never shown: not in logs, not in errors, not by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each key's bytes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(String::as_bytes)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} API keys", self.0.len())
    }
}

/// Never fails: a parser's error would repeat the text. `Access::read` looks at the keys.
impl FromStr for ApiKeys {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(commas(text)))
    }
}

impl<'de> Deserialize<'de> for ApiKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OneOrMany::deserialize(deserializer).map(|list| Self(list.into()))
    }
}

/// Origins, as in `https://app.example`, or the one word `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Each origin.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether pages from anywhere are meant.
    pub fn is_any(&self) -> bool {
        self.0 == ["*"]
    }

    fn check(&self) -> Result<()> {
        let wrong =
            |origin: &str, why: &str| Err(Error::invalid("cors_origins", format!("{origin:?}: {why}")));
        if self.0.is_empty() {
            return Err(Error::invalid("cors_origins", "is empty; leave it out to allow no other origin"));
        }
        for origin in self.0.iter().filter(|_| !self.is_any()) {
            if origin == "*" {
                return wrong(origin, "stands alone or not at all");
            }
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let plain = |host: &str| {
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
                !host.is_empty() && host.bytes().all(fits)
            };
            if !host.is_some_and(plain) {
                return wrong(
                    origin,
                    "an origin is http:// or https:// and a host, such as https://app.example",
                );
            }
        }
        Ok(())
    }
}

impl FromStr for Origins {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(commas(text)))
    }
}

impl<'de> Deserialize<'de> for Origins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OneOrMany::deserialize(deserializer).map(|list| Self(list.into()))
    }
}

/// A list in TOML, or one text with commas, as in the environment.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(list: OneOrMany) -> Self {
        match list {
            OneOrMany::One(text) => commas(&text),
            OneOrMany::Many(items) => items,
        }
    }
}

fn commas(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// PEM files of the main port's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and the chain below it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Who may ask, and from where. By default: anyone who reaches the port, in clear, from no other page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The keys of which a request needs one; `None` asks for none.
    pub keys: Option<ApiKeys>,
    /// TLS on the main port, if any.
    pub tls: Option<TlsFiles>,
    /// Origins whose pages may read answers.
    pub origins: Option<Origins>,
}

impl Access {
    /// Takes its settings, and reads the file of keys.
    ///
    /// # Errors
    ///
    /// `Invalid`, naming the setting and the file, and never a key.
    pub(super) fn read(settings: &Settings) -> Result<Self> {
        let tls = match (&settings.tls_cert, &settings.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
            (None, None) => None,
            (Some(_), None) => return Err(Error::invalid("tls_key", "is missing; tls_cert needs it")),
            (None, Some(_)) => return Err(Error::invalid("tls_cert", "is missing; tls_key needs it")),
        };
        if let Some(origins) = &settings.cors_origins {
            origins.check()?;
        }
        Ok(Self { keys: keys(settings)?, tls, origins: settings.cors_origins.clone() })
    }
}

/// The keys of both settings together.
fn keys(settings: &Settings) -> Result<Option<ApiKeys>> {
    let mut all = Vec::new();
    if let Some(given) = &settings.api_keys {
        if given.is_empty() {
            // Asked for and not there, as with a variable that is not set: no reason to let everyone in.
            return Err(Error::invalid("api_keys", "is empty; leave it out to ask for no key"));
        }
        for (index, key) in given.0.iter().enumerate() {
            check(key, "api_keys", &format!("key {}", index + 1))?;
        }
        all.extend_from_slice(&given.0);
    }
    if let Some(path) = &settings.api_keys_file {
        all.append(&mut from_file(path)?);
    }
    Ok((!all.is_empty()).then_some(ApiKeys(all)))
}

/// One key a line; empty lines and lines that start with # say nothing.
fn from_file(path: &Path) -> Result<Vec<String>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|cause| {
        Error::invalid("api_keys_file", format!("{name}: cannot be read: {cause}")).with_cause(cause)
    })?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if !line.is_empty() && !line.starts_with('#') {
            check(line, "api_keys_file", &format!("{name}: line {}", number + 1))?;
            keys.push(line.to_owned());
        }
    }
    if keys.is_empty() {
        return Err(Error::invalid("api_keys_file", format!("{name}: holds no key")));
    }
    Ok(keys)
}

/// What a header cannot carry would never match.
fn check(key: &str, setting: &str, place: &str) -> Result<()> {
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("{place}: a key has visible ASCII characters only, and no spaces");
        return Err(Error::invalid(setting, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(toml: &str) -> Result<Access> {
        Access::read(&toml::from_str(toml).expect("settings"))
    }

    fn refusal(toml: &str) -> String {
        read(toml).expect_err("refused").message().to_owned()
    }

    #[test]
    fn by_default_nothing_is_asked_for() {
        assert_eq!(read("").expect("valid"), Access::default());
    }

    #[test]
    fn keys_come_from_a_list_a_text_and_a_file() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"# ours\nkey-c\n\n  key-d \n").expect("written");
        let path = file.path().display().to_string();
        let keys = |toml: &str| {
            let keys = read(toml).expect("valid").keys.expect("keys");
            keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(keys("api_keys = ['key-a', 'key-b']"), ["key-a", "key-b"]);
        assert_eq!(keys("api_keys = 'key-a, key-b'"), ["key-a", "key-b"]);
        assert_eq!(
            keys(&format!("api_keys = 'key-a'\napi_keys_file = '{path}'")),
            ["key-a", "key-c", "key-d"]
        );
    }

    #[test]
    fn no_keys_where_keys_were_meant_is_an_error() {
        assert_eq!(refusal("api_keys = ''"), "api_keys: is empty; leave it out to ask for no key");
        assert_eq!(refusal("api_keys = []"), "api_keys: is empty; leave it out to ask for no key");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().display().to_string();
        assert_eq!(
            refusal(&format!("api_keys_file = '{path}'")),
            format!("api_keys_file: {path}: holds no key")
        );
        let missing = refusal("api_keys_file = '/nonexistent/keys'");
        assert!(missing.starts_with("api_keys_file: /nonexistent/keys: cannot be read: "), "{missing}");
    }

    #[test]
    fn keys_are_never_shown() {
        let access = read("api_keys = ['very-secret']").expect("valid");
        assert!(!format!("{access:?}").contains("very"), "{access:?}");
        let refused = refusal("api_keys = ['fine', 'very secret']");
        assert_eq!(refused, "api_keys: key 2: a key has visible ASCII characters only, and no spaces");
        let error = toml::from_str::<Settings>("api_keys = [['very-secret']]").expect_err("no list of texts");
        assert!(!error.message().contains("very"), "{}", error.message());
    }

    #[test]
    fn tls_needs_both_files() {
        assert_eq!(refusal("tls_cert = 'a.pem'"), "tls_key: is missing; tls_cert needs it");
        assert_eq!(refusal("tls_key = 'a.pem'"), "tls_cert: is missing; tls_key needs it");
        let tls = read("tls_cert = 'a.pem'\ntls_key = 'b.pem'").expect("valid").tls.expect("files");
        assert_eq!((tls.cert, tls.key), ("a.pem".into(), "b.pem".into()));
    }

    #[test]
    fn origins_are_a_scheme_and_a_host() {
        for fine in ["https://app.example", "http://localhost:3000, https://a.b", "http://[::1]:80", "*"] {
            read(&format!("cors_origins = '{fine}'")).unwrap_or_else(|error| panic!("{fine}: {error}"));
        }
        for wrong in ["app.example", "https://a.example/", "https://", "ftp://a", "null"] {
            let refused = refusal(&format!("cors_origins = '{wrong}'"));
            assert!(refused.starts_with(&format!("cors_origins: {wrong:?}: an origin is")), "{refused}");
        }
        assert!(refusal("cors_origins = '*, https://a.b'").contains("stands alone"));
        assert!(refusal("cors_origins = ''").contains("is empty"));
    }
}
