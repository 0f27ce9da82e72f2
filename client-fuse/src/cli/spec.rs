//! What to mount: `HOST:PORT/VOLUME`.

use std::fmt;
use std::str::FromStr;

use larder_protocol::limits::MAX_VOLUME_NAME;

/// The port a server listens on when none is named.
pub(super) const DEFAULT_PORT: u16 = 7425;
/// The volume mounted when none is named.
pub(super) const DEFAULT_VOLUME: &str = "root";

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// A name or an address; IPv6 addresses without their brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// A volume on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    /// The server.
    pub server: Server,
    /// The volume's name.
    pub volume: String,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest
                .split_once(']')
                .ok_or_else(|| format!("`{text}`: the bracket around the IPv6 address is not closed"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("`{text}`: `{host}` is not an IPv6 address"));
            }
            match after {
                "" => (host, None),
                _ => (
                    host,
                    Some(after.strip_prefix(':').ok_or_else(|| format!("`{text}`: expected `:PORT` after `]`"))?),
                ),
            }
        } else {
            match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => {
                    return Err(format!("`{text}`: write an IPv6 address in brackets, as in `[::1]:{DEFAULT_PORT}`"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() {
            return Err(format!("`{text}`: the host is missing; write HOST:PORT, as in `127.0.0.1:{DEFAULT_PORT}`"));
        }
        if host.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, ',' | '\\' | '/')) {
            return Err(format!("`{text}`: `{host}` is not a host name or address"));
        }
        let port = match port {
            None | Some("") => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(format!("`{text}`: `{port}` is not a port; use a number from 1 to 65535")),
            },
        };
        Ok(Server { host: host.to_owned(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let (server, volume) = text.split_once('/').unwrap_or((text, ""));
        let volume = match volume {
            "" => DEFAULT_VOLUME,
            volume => volume,
        };
        if volume.contains('/') {
            return Err(format!("`{text}`: only whole volumes can be mounted; `{volume}` is a path"));
        }
        if volume.len() > MAX_VOLUME_NAME {
            return Err(format!("`{text}`: a volume's name has at most {MAX_VOLUME_NAME} bytes"));
        }
        if volume.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, ',' | '\\')) {
            return Err(format!("`{text}`: `{volume}` is not a volume's name"));
        }
        Ok(Spec { server: server.parse()?, volume: volume.to_owned() })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_defaults() {
        for (text, full) in [
            ("localhost", "localhost:7425/root"),
            ("localhost:99", "localhost:99/root"),
            ("10.0.0.1:99/home", "10.0.0.1:99/home"),
            ("host:/home", "host:7425/home"),
            ("host/home", "host:7425/home"),
            ("[::1]", "[::1]:7425/root"),
            ("[fe80::1]:80/a", "[fe80::1]:80/a"),
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(spec.to_string(), full);
            assert_eq!(full.parse::<Spec>().unwrap(), spec);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "host is missing"),
            (":7425/root", "host is missing"),
            ("::1", "brackets"),
            ("[::1", "not closed"),
            ("[nonsense]:1", "not an IPv6 address"),
            ("host:0", "not a port"),
            ("host:99999", "not a port"),
            ("host:x/root", "not a port"),
            ("host:1/a/b", "a path"),
            ("ho st:1", "not a host"),
            ("a,b:1", "not a host"),
            ("host:1/a,suid", "not a volume"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(format!("h:1/{}", "v".repeat(MAX_VOLUME_NAME + 1)).parse::<Spec>().is_err());
    }
}
