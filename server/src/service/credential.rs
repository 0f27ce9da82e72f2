//! Whose rights a request has here, as opposed to whose it says it has.

use std::net::IpAddr;
use std::str::FromStr;

use larder_protocol::attr::Credential;
use larder_protocol::limits::MAX_GROUPS;
use serde::Deserialize;

use crate::net::sessions::Peer;

/// The user and group that stand for "nobody in particular" (`nobody`, `nogroup`; as in exports(5)).
pub const NOBODY: u32 = 65534;

/// Whether the superuser of a client becomes nobody here (`root_squash` of exports(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RootSquash {
    /// That of another host does, that of this host does not.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Some hosts: an address, of which only the first bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn has(self, address: IpAddr) -> bool {
        fn bits(address: IpAddr) -> (u128, u8) {
            match address {
                IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
                IpAddr::V6(address) => (address.into(), 128),
            }
        }
        let ((mine, of_mine), (other, of_other)) = (bits(self.address), bits(address));
        // A shift by all bits is none.
        of_mine == of_other && (self.bits == 0 || (mine ^ other) >> (128 - u32::from(self.bits)) == 0)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("`{text}` names no hosts; write an address, or ADDRESS/BITS");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits <= most { Ok(Network { address, bits }) } else { Err(wrong()) }
    }
}

/// Which superusers become nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Squash {
    /// Those of which hosts.
    pub when: RootSquash,
    /// Hosts that count as this one.
    pub trusted: Vec<Network>,
}

impl Squash {
    /// The credential that counts, of one that came from `peer`.
    pub fn apply(&self, peer: Peer, mut cred: Credential) -> Credential {
        cred.groups.truncate(MAX_GROUPS);
        let squash = match self.when {
            RootSquash::Auto => !peer.is_local() && !self.trusts(peer),
            RootSquash::On => true,
            RootSquash::Off => false,
        };
        if squash {
            cred.groups.retain(|gid| *gid != 0);
            for id in [&mut cred.uid, &mut cred.gid] {
                if *id == 0 {
                    *id = NOBODY;
                }
            }
        }
        cred
    }

    fn trusts(&self, peer: Peer) -> bool {
        let Peer::Tcp(address) = peer else { return true };
        let address = address.ip().to_canonical();
        self.trusted.iter().any(|network| network.has(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn squash(when: RootSquash) -> Squash {
        Squash { when, trusted: Vec::new() }
    }

    #[test]
    fn the_superuser_of_a_trusted_host_is_the_superuser() {
        let root = Credential::root();
        let trusted = ["10.1.0.0/16", "fd00::/8", "192.168.0.7"].map(|text| text.parse().unwrap()).to_vec();
        let squash = Squash { when: RootSquash::Auto, trusted: trusted.clone() };
        let uid = |address: &str| squash.apply(peer(address), root.clone()).uid;
        for near in ["10.1.2.3:9", "[::ffff:10.1.2.3]:9", "[fd12::1]:9", "192.168.0.7:9", "127.0.0.1:9"] {
            assert_eq!(uid(near), 0, "{near}");
        }
        for far in ["10.2.0.1:9", "[fe80::1]:9", "192.168.0.8:9", "[::1.2.3.4]:9"] {
            assert_eq!(uid(far), NOBODY, "{far}");
        }
        let always = Squash { when: RootSquash::On, trusted };
        assert_eq!(always.apply(peer("10.1.2.3:9"), root.clone()).uid, NOBODY);
        let all = Squash { when: RootSquash::Auto, trusted: vec!["0.0.0.0/0".parse().unwrap()] };
        assert_eq!(all.apply(peer("10.2.0.1:9"), root).uid, 0);
        for bad in ["", "10.1", "10.1.0.0/33", "10.1.0.0/x", "host/8", "fd00::/129"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_superuser_of_other_hosts_is_nobody() {
        let root = Credential { uid: 0, gid: 0, groups: vec![0, 4, 0, 5] };
        let nobody = Credential { uid: NOBODY, gid: NOBODY, groups: vec![4, 5] };
        let (near, far) = (peer("127.0.0.1:9"), peer("10.0.0.1:9"));
        assert_eq!(squash(RootSquash::Auto).apply(far, root.clone()), nobody);
        assert_eq!(squash(RootSquash::Auto).apply(near, root.clone()), root);
        assert_eq!(squash(RootSquash::Auto).apply(peer("[::ffff:127.0.0.1]:9"), root.clone()), root);
        assert_eq!(squash(RootSquash::Auto).apply(Peer::Local, root.clone()), root);
        assert_eq!(squash(RootSquash::On).apply(near, root.clone()), nobody);
        assert_eq!(squash(RootSquash::Off).apply(far, root.clone()), root);
    }

    #[test]
    fn others_stay_who_they_are() {
        let user = Credential { uid: 1000, gid: 100, groups: vec![7] };
        assert_eq!(squash(RootSquash::On).apply(peer("10.0.0.1:9"), user.clone()), user);
        let in_root_group = Credential { uid: 1000, gid: 0, groups: vec![] };
        assert_eq!(squash(RootSquash::On).apply(Peer::Local, in_root_group).gid, NOBODY);
    }

    #[test]
    fn groups_past_the_limit_are_cut() {
        let many = Credential { uid: 1, gid: 1, groups: (1..3000).collect() };
        assert_eq!(squash(RootSquash::Off).apply(Peer::Local, many).groups.len(), MAX_GROUPS);
    }
}
