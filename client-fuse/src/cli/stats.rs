//! `larder stats`: the counters of a mount or of a server.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::control::{Caller, Command};
use super::dial::{dial, runtime, within};
use super::spec::Server;
use super::{StatsArgs, mounts, rundir};

/// How long the other side may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(args: &StatsArgs) -> anyhow::Result<()> {
    let is_server = args.target.as_bytes().contains(&b':') && !mounts::exists(&args.target);
    let stats = if is_server {
        let target = args.target.to_str().ok_or_else(|| anyhow!("the server's address is not text"))?;
        of_server(&target.parse().map_err(anyhow::Error::msg)?)?
    } else {
        of_mount(Path::new(&args.target))?
    };
    let text = if args.json { format!("{stats:#}\n") } else { table(&stats) };
    match io::stdout().write_all(text.as_bytes()) {
        // Such as `larder stats … | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn of_mount(path: &Path) -> anyhow::Result<Value> {
    let shown = path.display();
    let mount = mounts::find(path)
        .with_context(|| format!("cannot find the mount on {shown}"))?
        .ok_or_else(|| anyhow!("{shown} is not mounted; for a server, write HOST:PORT"))?;
    if !mount.is_larder() {
        bail!("{shown} is a mount of {} ({}), not of Larder", mount.source, mount.fs_type);
    }
    let gone = || anyhow!("the process of {shown} is gone; remove the mount with `larder umount --force {shown}`");
    let socket = rundir::socket_of(&mount).ok_or_else(gone)?;
    let mut caller = Caller::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            anyhow!("user {} made the mount on {shown}; ask as that user, or as root", mount.user_id.unwrap_or(0))
        }
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => gone(),
        _ => anyhow!(error).context(format!("cannot reach the process of {shown}")),
    })?;
    let stats =
        caller.ask(Command::Stats, ANSWER_WITHIN).with_context(|| format!("the process of {shown} does not answer"))?;
    match stats.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(stats),
    }
}

fn of_server(server: &Server) -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let advice =
            || format!("no statistics from the server at {server}; check the address, and that larderd runs there");
        match timeout(ANSWER_WITHIN, ask_server(server)).await {
            Ok(result) => result.with_context(advice),
            Err(_) => Err(anyhow!("no answer within {} s", ANSWER_WITHIN.as_secs()).context(advice())),
        }
    })
}

async fn ask_server(server: &Server) -> anyhow::Result<Value> {
    let client = dial(server).await?;
    Ok(serde_json::to_value(client.stats(within(ANSWER_WITHIN)).await?)?)
}

/// The counters for people: requests as a table, then everything else by name.
fn table(stats: &Value) -> String {
    let Value::Object(fields) = stats else { return format!("{stats}\n") };
    let mut text = String::new();
    if let Some(Value::Object(requests)) = fields.get("requests") {
        text.push_str(&request_table(requests));
    }
    let rest: Vec<_> = fields.iter().filter(|(name, _)| *name != "requests").collect();
    let mut lines = Vec::new();
    for (name, value) in rest {
        flatten(&readable(name), value, &mut lines);
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    if !text.is_empty() && !lines.is_empty() {
        text.push('\n');
    }
    for (name, value) in lines {
        text.push_str(&format!("{name:width$}  {value}\n"));
    }
    text
}

fn request_table(requests: &Map<String, Value>) -> String {
    const COLUMNS: [(&str, &str); 5] =
        [("count", "count"), ("errors", "errors"), ("p50_us", "p50 µs"), ("p99_us", "p99 µs"), ("max_us", "max µs")];
    let width = requests.keys().map(|name| name.chars().count()).max().unwrap_or(0).max("request".len());
    let mut text = format!("{:width$}", "request");
    for (_, title) in COLUMNS {
        text.push_str(&format!(" {title:>10}"));
    }
    text.push('\n');
    for (name, counts) in requests {
        text.push_str(&format!("{name:width$}"));
        for (field, _) in COLUMNS {
            let count = counts.get(field).map(Value::to_string).unwrap_or_default();
            text.push_str(&format!(" {count:>10}"));
        }
        text.push('\n');
    }
    text
}

fn readable(name: &str) -> String {
    name.replace('_', " ")
}

/// Nested counters get a line each, under the names that lead to them.
fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}: {}", readable(field)), value, lines);
            }
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(plain).collect();
            lines.push((name.to_owned(), items.join(",")));
        }
        value => lines.push((name.to_owned(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let stats = json!({
            "requests": {
                "lookup": { "count": 5, "errors": 1, "p50_us": 70, "p99_us": 1200, "max_us": 90000 },
                "copy_range": { "count": 1, "errors": 0, "p50_us": 7, "p99_us": 7, "max_us": 7 },
            },
            "bytes_read": 12,
            "options": ["ro", "nolock"],
            "misses": { "attribute_expired": 3 },
        });
        let text = table(&stats);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        let widths: Vec<_> = lines[..3].iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(lines[2].starts_with("lookup") && lines[2].ends_with("90000"), "{text}");
        assert_eq!(lines[4], "bytes read                 12");
        assert_eq!(lines[5], "misses: attribute expired  3");
        assert_eq!(lines[6], "options                    ro,nolock");
    }

    #[test]
    fn a_server_that_is_not_there_is_said_so() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = of_server(&Server { host: "127.0.0.1".to_owned(), port }).unwrap_err();
        assert!(format!("{error:#}").contains("larderd"), "{error:#}");
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(of_mount(dir.path()).unwrap_err().to_string().contains("not mounted"));
        assert!(of_mount(Path::new("/proc")).unwrap_err().to_string().contains("not of Larder"));
    }
}
