//! Mount options: the names of nfs(5), and those that mount(8) and fstab(5) give to every file system.

use std::path::PathBuf;
use std::time::Duration;

use larder_protocol::limits::MAX_PAYLOAD;

use crate::fuse::KernelOptions;
use crate::vfs::{CacheOptions, Fsync, LookupCache, Mode, MountOptions};

/// The options there are, for messages.
pub(super) const KNOWN: &str = "mode=nfs|afs|direct, cache=DIR, cache-size=SIZE, \
     coherence=strict|prompt, fsync=server|local, passthrough=SIZE|off, ro, rw, hard, soft, timeo=DECISECONDS, retrans=N, actimeo=SECONDS, \
     acregmin=SECONDS, acregmax=SECONDS, acdirmin=SECONDS, acdirmax=SECONDS, noac, cto, nocto, \
     lookupcache=all|positive|none, rsize=BYTES, wsize=BYTES, atime, noatime, relatime, suid, nosuid, dev, nodev, exec, \
     noexec, sync, async, dirsync, nolock; for fstab: defaults, auto, noauto, user, users, owner, group, nouser, nofail, \
     _netdev, comment=..., x-..., X-...";

/// The size of a cache that nobody chose one for.
const DEFAULT_CACHE: u64 = 10 << 30;
/// The smallest cache.
const MIN_CACHE: u64 = 1 << 20;
/// Files from this size on are served by the kernel itself: its way costs more at open than it saves below.
const DEFAULT_PASSTHROUGH: u64 = 256 << 10;
/// The smallest `rsize` and `wsize`: a page, less than which the kernel does not transfer.
const MIN_TRANSFER: u32 = 4096;
/// The longest `timeo`, as nfs(5) has it.
const MAX_TIMEO: u32 = 6000;
/// A longer validity than this (ten years) is a slip of the pen.
const MAX_VALIDITY: f64 = 315_360_000.0;

/// All options of a mount.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// Those for the client.
    pub mount: MountOptions,
    /// Those for the kernel.
    pub kernel: KernelOptions,
    /// Those for the disk cache of afs mode.
    pub cache: CacheChoice,
    /// What was accepted and does not mean what it says.
    pub warnings: Vec<String>,
}

/// What was said about the disk cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheChoice {
    /// Where it is to be.
    pub dir: Option<PathBuf>,
    /// How large it may get, in bytes.
    pub size: Option<u64>,
    /// From which size on the kernel serves files itself; `Some(None)`: it never does.
    pub passthrough: Option<Option<u64>>,
}

impl CacheChoice {
    /// With defaults for what was left open.
    pub(super) fn settle(&self, default_dir: impl FnOnce() -> PathBuf) -> CacheOptions {
        CacheOptions {
            dir: self.dir.clone().unwrap_or_else(default_dir),
            size: self.size.unwrap_or(DEFAULT_CACHE),
            passthrough: self.passthrough.unwrap_or(Some(DEFAULT_PASSTHROUGH)),
            keep_open: CacheOptions::KEEP_OPEN,
        }
    }
}

/// A number of bytes, perhaps with one of the letters K, M, G and T behind it, for powers of 1024.
pub(super) fn bytes(value: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "a number of bytes, with K, M, G or T behind it if you like";
    let upper = value.trim().to_ascii_uppercase();
    let text = upper.strip_suffix("IB").unwrap_or(&upper);
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        Some((at, 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.trim().parse().map_err(|_| EXPECTED)?;
    number.checked_mul(1 << shift).ok_or(EXPECTED)
}

/// The size of a cache.
pub(super) fn cache_size(value: &str) -> Result<u64, &'static str> {
    match bytes(value)? {
        size if size >= MIN_CACHE => Ok(size),
        _ => Err("at least 1M"),
    }
}

/// Parses comma separated lists; later words win. `sloppy` passes over what is unknown, as mount(8) asks with `-s`.
///
/// # Errors
/// A text that names the option and what would be right.
pub(super) fn parse(lists: &[String], sloppy: bool) -> Result<Options, String> {
    let mut options = Options::default();
    let mut validity = Validity::default();
    for word in lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let known = match value {
            None => flag(&mut options, &mut validity, name),
            Some(value) => setting(&mut options, &mut validity, name, value)
                .map_err(|expected| format!("option `{word}`: expected {expected}"))?,
        };
        if name == "remount" {
            return Err("a mount of Larder cannot be changed: unmount it, and mount it with other options".to_owned());
        }
        if !known && !sloppy {
            return Err(format!("unknown option `{word}`; there are: {KNOWN}"));
        }
    }
    validity.settle(&mut options.mount)?;
    Ok(options)
}

/// The attribute timeouts that were given, as opposed to their defaults.
#[derive(Default)]
struct Validity {
    acregmin: Option<Duration>,
    acregmax: Option<Duration>,
    acdirmin: Option<Duration>,
    acdirmax: Option<Duration>,
}

impl Validity {
    fn all(&mut self, value: Duration) {
        *self = Validity { acregmin: Some(value), acregmax: Some(value), acdirmin: Some(value), acdirmax: Some(value) };
    }

    fn settle(&self, options: &mut MountOptions) -> Result<(), String> {
        let reg = range("acreg", self.acregmin, self.acregmax, (options.acregmin, options.acregmax))?;
        let dir = range("acdir", self.acdirmin, self.acdirmax, (options.acdirmin, options.acdirmax))?;
        (options.acregmin, options.acregmax) = reg;
        (options.acdirmin, options.acdirmax) = dir;
        Ok(())
    }
}

/// A bound that was not given follows the one that was.
fn range(
    name: &str,
    min: Option<Duration>,
    max: Option<Duration>,
    default: (Duration, Duration),
) -> Result<(Duration, Duration), String> {
    match (min, max) {
        (Some(min), Some(max)) if min > max => {
            Err(format!("{name}min={} is more than {name}max={}", min.as_secs_f64(), max.as_secs_f64()))
        }
        (Some(min), Some(max)) => Ok((min, max)),
        (Some(min), None) => Ok((min, default.1.max(min))),
        (None, Some(max)) => Ok((default.0.min(max), max)),
        (None, None) => Ok(default),
    }
}

/// Options without a value; whether there is one of this name.
fn flag(options: &mut Options, validity: &mut Validity, name: &str) -> bool {
    let (mount, kernel) = (&mut options.mount, &mut options.kernel);
    match name {
        "ro" => (mount.ro, kernel.ro) = (true, true),
        "rw" => (mount.ro, kernel.ro) = (false, false),
        "hard" => mount.soft = false,
        "soft" => mount.soft = true,
        "cto" => mount.nocto = false,
        "nocto" => mount.nocto = true,
        "noac" => validity.all(Duration::ZERO),
        "noatime" => (mount.noatime, kernel.noatime) = (true, true),
        // The server keeps access times as `relatime` says in any case.
        "atime" | "relatime" => (mount.noatime, kernel.noatime) = (false, false),
        "suid" => kernel.nosuid = false,
        "nosuid" => kernel.nosuid = true,
        "dev" => kernel.nodev = false,
        "nodev" => kernel.nodev = true,
        "exec" => kernel.noexec = false,
        "noexec" => kernel.noexec = true,
        "sync" => kernel.sync = true,
        "async" => kernel.sync = false,
        "dirsync" => kernel.dirsync = true,
        "lock" => options.warnings.push(
            "option `lock` has no effect yet: fcntl and flock locks are seen on this machine only, as with `nolock`"
                .to_owned(),
        ),
        // What an ordinary user mounts by fstab, mount(8) makes nosuid, nodev and noexec by words of its own.
        "nolock" | "defaults" | "auto" | "noauto" | "user" | "users" | "owner" | "group" | "nouser" | "nofail"
        | "_netdev" => {}
        _ => return is_remark(name),
    }
    true
}

/// Options with a value; whether there is one of this name, or what value it expects.
fn setting(options: &mut Options, validity: &mut Validity, name: &str, value: &str) -> Result<bool, &'static str> {
    let mount = &mut options.mount;
    match name {
        "mode" => {
            mount.mode = match value {
                "nfs" => Mode::Nfs,
                "afs" => Mode::Afs,
                "direct" => Mode::Direct,
                _ => return Err("`nfs`, `afs` or `direct`"),
            }
        }
        "cache" => options.cache.dir = Some(PathBuf::from(value)),
        "cache-size" => options.cache.size = Some(cache_size(value)?),
        "coherence" => {
            mount.strict = match value {
                "strict" => true,
                "prompt" => false,
                _ => return Err("`strict` or `prompt`"),
            }
        }
        "fsync" => {
            mount.fsync = match value {
                "server" => Fsync::Server,
                "local" => Fsync::Local,
                _ => return Err("`server` or `local`"),
            }
        }
        "passthrough" => {
            options.cache.passthrough = Some(match value {
                "off" => None,
                size => Some(bytes(size)?),
            });
        }
        "actimeo" => validity.all(seconds(value)?),
        "acregmin" => validity.acregmin = Some(seconds(value)?),
        "acregmax" => validity.acregmax = Some(seconds(value)?),
        "acdirmin" => validity.acdirmin = Some(seconds(value)?),
        "acdirmax" => validity.acdirmax = Some(seconds(value)?),
        "timeo" => {
            mount.timeo = match value.parse::<u32>() {
                Ok(tenths @ 1..=MAX_TIMEO) => Duration::from_millis(u64::from(tenths) * 100),
                _ => return Err("tenths of a second, from 1 to 6000"),
            }
        }
        "retrans" => mount.retrans = value.parse().map_err(|_| "a number of retries")?,
        "rsize" => mount.rsize = transfer(value)?,
        "wsize" => mount.wsize = transfer(value)?,
        "lookupcache" => {
            mount.lookupcache = match value {
                "all" => LookupCache::All,
                "pos" | "positive" => LookupCache::Positive,
                "none" => LookupCache::None,
                _ => return Err("`all`, `positive` or `none`"),
            }
        }
        "user" => {}
        _ => return Ok(is_remark(name)),
    }
    Ok(true)
}

/// Names that are meant for the eyes of other programs.
fn is_remark(name: &str) -> bool {
    name == "comment" || name.starts_with("x-") || name.starts_with("X-")
}

fn seconds(value: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "seconds, such as `30` or `0.5`";
    match value.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_VALIDITY).contains(&seconds) => {
            Duration::try_from_secs_f64(seconds).map_err(|_| EXPECTED)
        }
        _ => Err(EXPECTED),
    }
}

/// Whole pages; what is out of range is brought into it, as nfs(5) does.
fn transfer(value: &str) -> Result<u32, &'static str> {
    let bytes: u64 = value.parse().map_err(|_| "a number of bytes")?;
    let bytes = bytes.clamp(u64::from(MIN_TRANSFER), MAX_PAYLOAD as u64) as u32;
    Ok(bytes - bytes % MIN_TRANSFER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(list: &str) -> Result<Options, String> {
        parse(&[list.to_owned()], false)
    }

    #[test]
    fn names_and_units_are_those_of_nfs() {
        let options = parse_one("soft,timeo=25,retrans=5,nocto,rsize=65536,wsize=32768,lookupcache=none,mode=direct");
        let mount = options.unwrap().mount;
        assert!(mount.soft && mount.nocto);
        assert_eq!((mount.timeo, mount.retrans), (Duration::from_millis(2500), 5));
        assert_eq!((mount.rsize, mount.wsize), (65536, 32768));
        assert_eq!((mount.lookupcache, mount.mode), (LookupCache::None, Mode::Direct));
    }

    #[test]
    fn the_cache_is_described_in_sizes_that_people_write() {
        let options =
            parse_one("mode=afs,cache=/c,cache-size=2G,coherence=prompt,fsync=local,passthrough=off").unwrap();
        assert_eq!((options.mount.mode, options.mount.strict, options.mount.fsync), (Mode::Afs, false, Fsync::Local));
        let cache = options.cache.settle(|| panic!("one was named"));
        assert_eq!((cache.dir, cache.size, cache.passthrough), (PathBuf::from("/c"), 2 << 30, None));
        let cache = CacheChoice::default().settle(|| PathBuf::from("/default"));
        assert_eq!((cache.dir, cache.passthrough), (PathBuf::from("/default"), Some(DEFAULT_PASSTHROUGH)));
        for (text, size) in [("1", 1), ("4k", 4096), ("3MiB", 3 << 20), ("2T", 2 << 40)] {
            assert_eq!(bytes(text), Ok(size));
        }
        for bad in ["", "k", "-1", "1X", "99999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn later_words_win_over_lists_too() {
        let options = parse(&["ro,soft,noatime".to_owned(), "rw,hard,atime".to_owned()], false).unwrap();
        assert!(!options.mount.ro && !options.kernel.ro);
        assert!(!options.mount.soft && !options.mount.noatime && !options.kernel.noatime);
    }

    #[test]
    fn timeouts_of_attributes_stay_in_order() {
        let mount = parse_one("actimeo=0.25").unwrap().mount;
        for value in [mount.acregmin, mount.acregmax, mount.acdirmin, mount.acdirmax] {
            assert_eq!(value, Duration::from_millis(250));
        }
        let mount = parse_one("noac,acregmax=9").unwrap().mount;
        assert_eq!((mount.acregmin, mount.acregmax), (Duration::ZERO, Duration::from_secs(9)));
        assert_eq!(mount.acdirmax, Duration::ZERO);
        let mount = parse_one("acregmax=1,acdirmin=90").unwrap().mount;
        assert_eq!((mount.acregmin, mount.acregmax), (Duration::from_secs(1), Duration::from_secs(1)));
        assert_eq!((mount.acdirmin, mount.acdirmax), (Duration::from_secs(90), Duration::from_secs(90)));
        assert!(parse_one("acregmin=5,acregmax=4").unwrap_err().contains("acregmin=5"));
    }

    #[test]
    fn what_fstab_says_to_others_is_accepted() {
        let list = "defaults,_netdev,nofail,auto,noauto,user=me,users,x-systemd.automount,X-a=b,comment=c,nolock";
        let options = parse_one(list).unwrap();
        assert_eq!(options.kernel, KernelOptions::default());
        assert!(options.warnings.is_empty());
        let options = parse_one("nosuid,nodev,noexec,sync,dirsync,lock").unwrap();
        let kernel = options.kernel;
        assert!(kernel.nosuid && kernel.nodev && kernel.noexec && kernel.sync && kernel.dirsync);
        assert_eq!(options.warnings.len(), 1);
        assert!(parse_one("").is_ok() && parse_one("ro,,").is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        for (list, part) in [
            ("ro,bogus", "`bogus`"),
            ("ro=1", "`ro=1`"),
            ("timeo", "`timeo`"),
            ("timeo=0", "tenths"),
            ("timeo=60001", "tenths"),
            ("actimeo=-1", "seconds"),
            ("actimeo=nan", "seconds"),
            ("acregmax=inf", "seconds"),
            ("mode=xfs", "`nfs`, `afs` or `direct`"),
            ("cache-size=10", "at least 1M"),
            ("cache-size=x", "K, M, G"),
            ("coherence=some", "`strict`"),
            ("fsync=no", "`local`"),
            ("lookupcache=some", "`positive`"),
            ("rsize=1k", "bytes"),
            ("retrans=x", "retries"),
        ] {
            let error = parse_one(list).unwrap_err();
            assert!(error.contains(part), "{list}: {error}");
        }
        assert!(parse_one("bogus").unwrap_err().contains("acregmin="), "it lists what there is");
        assert!(parse(&["bogus,ro".to_owned()], true).unwrap().mount.ro);
    }

    #[test]
    fn transfer_sizes_are_whole_pages_in_range() {
        for (value, bytes) in [("0", 4096), ("5000", 4096), ("8192", 8192), ("1048576", 1 << 20), ("99999999", 1 << 20)]
        {
            assert_eq!(transfer(value), Ok(bytes), "{value}");
        }
    }
}
