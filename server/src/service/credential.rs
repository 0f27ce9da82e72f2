//! Whose rights a request has here, as opposed to whose it says it has.

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

impl RootSquash {
    /// The credential that counts, of one that came from `peer`.
    pub fn apply(self, peer: Peer, mut cred: Credential) -> Credential {
        cred.groups.truncate(MAX_GROUPS);
        let squash = match self {
            RootSquash::Auto => !peer.is_local(),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    #[test]
    fn the_superuser_of_other_hosts_is_nobody() {
        let root = Credential { uid: 0, gid: 0, groups: vec![0, 4, 0, 5] };
        let nobody = Credential { uid: NOBODY, gid: NOBODY, groups: vec![4, 5] };
        let (near, far) = (peer("127.0.0.1:9"), peer("10.0.0.1:9"));
        assert_eq!(RootSquash::Auto.apply(far, root.clone()), nobody);
        assert_eq!(RootSquash::Auto.apply(near, root.clone()), root);
        assert_eq!(RootSquash::Auto.apply(peer("[::ffff:127.0.0.1]:9"), root.clone()), root);
        assert_eq!(RootSquash::Auto.apply(Peer::Local, root.clone()), root);
        assert_eq!(RootSquash::On.apply(near, root.clone()), nobody);
        assert_eq!(RootSquash::Off.apply(far, root.clone()), root);
    }

    #[test]
    fn others_stay_who_they_are() {
        let user = Credential { uid: 1000, gid: 100, groups: vec![7] };
        assert_eq!(RootSquash::On.apply(peer("10.0.0.1:9"), user.clone()), user);
        let in_root_group = Credential { uid: 1000, gid: 0, groups: vec![] };
        assert_eq!(RootSquash::On.apply(Peer::Local, in_root_group).gid, NOBODY);
    }

    #[test]
    fn groups_past_the_limit_are_cut() {
        let many = Credential { uid: 1, gid: 1, groups: (1..3000).collect() };
        assert_eq!(RootSquash::Off.apply(Peer::Local, many).groups.len(), MAX_GROUPS);
    }
}
