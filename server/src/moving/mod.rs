//! Moving a volume from one server to another while programs use it.
//!
//! The destination runs the move ([`incoming`]); the source answers it ([`outgoing`]). What the record in the cell's directory
//! says at each step, and who may make it, is in [`core::moving`](crate::core::moving) (M1 to M3).
//!
//! ```text
//! destination                                source
//! record: moving to here ─────────────────►
//! Begin  ─────────────────────────────────►  notes what changes from now on
//! Rows, Content, ...  ────────────────────►  serves programs
//! Changes, Content, ... again and again ──►  serves programs
//! Prepare  ───────────────────────────────►  grants no callbacks, waits until those there are are given up
//! Freeze  ────────────────────────────────►  record: frozen; ends what is under way; closes the volume
//! Changes, Content: the rest  ────────────►  has requests wait
//! record: it is here (the commit point)
//! Moved  ─────────────────────────────────►  answers `Moved`, removes its copy
//! ```
//!
//! - **M4** While a volume is frozen nobody has a callback on it: they are given up before, and none is granted after that. So
//!   nobody has to be waited for whom the destination does not know.
//! - **M5** All that the destination has of the volume is durable before it commits, whatever the durability of either server is.
//! - **M6** Requests for a volume on connections that were greeted before it arrived are refused (`Fenced`): one that was sent
//!   when it was here before, and came late, must not be carried out now.
//! - **M7** A copy is removed only where the volume was frozen to be sent (its directory says so), once the directory of the cell
//!   names another server. What is being copied is no volume before the record says so.

pub mod incoming;
pub mod outgoing;
mod pace;

use larder_protocol::error::ErrorCode;
use larder_protocol::service::admin::AdminError;

use crate::core::moving::NotNow;
use crate::location::LocationError;

impl From<NotNow> for LocationError {
    fn from(reason: NotNow) -> LocationError {
        LocationError::Moving(reason)
    }
}

fn error(code: ErrorCode, text: impl Into<String>) -> AdminError {
    AdminError { code, text: text.into() }
}
