//! `mount.larder SPEC DIR [-sfnv] [-o OPTIONS]`: how mount(8) calls for file systems of the type `larder`.

use std::path::PathBuf;

use clap::Parser;

use super::spec::Spec;
use super::{MountArgs, mount, mounts, options, start_logging};

/// Mounts a Larder volume, for mount(8) and fstab(5).
#[derive(Debug, Parser)]
#[command(
    name = "mount.larder",
    version,
    after_help = "Example, in /etc/fstab:
  host:7425/root  /mnt  larder  defaults,_netdev  0 0

`larder mount --help` lists the options."
)]
struct Helper {
    /// What to mount.
    #[arg(value_name = "HOST:PORT[/VOLUME]")]
    spec: Spec,
    /// An existing directory.
    mountpoint: PathBuf,
    /// Pass over options that are unknown.
    #[arg(short)]
    sloppy: bool,
    /// Check everything, and mount nothing.
    #[arg(short)]
    fake: bool,
    /// Accepted and without effect: the kernel keeps the table of mounts.
    #[arg(short)]
    no_mtab: bool,
    /// Log more.
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// The type of file system, as mount(8) names it.
    #[arg(short = 't', value_name = "TYPE")]
    _fs_type: Option<String>,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    options: Vec<String>,
}

pub(super) fn run() -> anyhow::Result<()> {
    let helper = Helper::parse();
    start_logging(helper.verbose, "warn");
    if helper.fake {
        options::parse(&helper.options, helper.sloppy).map_err(anyhow::Error::msg)?;
        mounts::resolve(&helper.mountpoint)?;
        return Ok(());
    }
    let args = MountArgs {
        cache: None,
        cache_size: None,
        coherence: None,
        fsync: None,
        mode: None,
        foreground: false,
        options: helper.options,
        sloppy: helper.sloppy,
        serve: false,
        spec: helper.spec,
        mountpoint: helper.mountpoint,
    };
    mount::run(args, helper.verbose)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn it_takes_what_mount_gives() {
        Helper::command().debug_assert();
        let helper = Helper::try_parse_from([
            "mount.larder",
            "h:1/root",
            "/mnt",
            "-sn",
            "-v",
            "-o",
            "rw,_netdev",
            "-t",
            "larder",
        ])
        .unwrap();
        assert!(helper.sloppy && !helper.fake);
        assert_eq!(helper.options, ["rw,_netdev"]);
    }
}
