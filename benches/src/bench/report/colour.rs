//! Who has which colour, in all pictures.

/// Colours in the page's style, from `--c0` on. 0 is for what has no network.
pub(super) const STYLE: &str = "
:root { --c0: #64748b; --c1: #2563eb; --c2: #0891b2; --c3: #7c3aed; --c4: #c2410c; --c5: #a16207; --c6: #be185d;
  --c7: #15803d }
@media (prefers-color-scheme: dark) { :root { --c0: #94a3b8; --c1: #60a5fa; --c2: #22d3ee; --c3: #a78bfa; --c4: #fb923c;
  --c5: #facc15; --c6: #f472b6; --c7: #4ade80 } }
";

/// The number of a candidate's colour; of anything else's that comes at this place, one that no mode has.
pub(super) fn of(name: &str, place: usize) -> usize {
    match name {
        "local" | "pass-through" => 0,
        "nfs" => 1,
        "moosefs" => 2,
        "sshfs" => 3,
        "direct" => 4,
        "glusterfs" => 5,
        "openafs" => 6,
        "afs" => 7,
        _ => [3, 5, 2, 6][place % 4],
    }
}
