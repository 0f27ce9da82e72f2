//! The way to a volume, which may be at another server before the answer has come.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::VolumeId;

use super::{Client, Failure, Servers};

/// How often a request follows its volume.
const HOPS: u32 = 32;
/// The pause before it does so again: what servers know of each other takes a moment. It grows with each time.
const PAUSE: Duration = Duration::from_millis(5);

/// Where a request goes.
pub struct Way {
    servers: Arc<Servers>,
    volume: VolumeId,
    client: Arc<Client>,
    hops: u32,
}

impl Servers {
    /// Where requests for a volume go.
    ///
    /// # Errors
    /// There is no such volume, or nobody says where it is.
    pub async fn way(self: &Arc<Self>, volume: VolumeId) -> Result<Way, Failure> {
        Ok(Way { servers: self.clone(), volume, client: self.of(volume).await?, hops: 0 })
    }
}

impl Way {
    /// The server to ask.
    pub fn client(&self) -> Arc<Client> {
        self.client.clone()
    }

    /// Waits for what that server answers; for nothing if another one is to be asked now (S2, S4 of [`servers`](super::servers)).
    ///
    /// # Errors
    /// The server's, or that there is no answer; nobody says where the volume is.
    pub async fn answer<T>(&mut self, answer: impl Future<Output = Result<T, Failure>>) -> Result<Option<T>, Failure> {
        match self.servers.or_elsewhere(self.volume, &self.client, answer).await {
            Ok(Err(Failure::Refused(ErrorCode::Moved))) if self.hops < HOPS => {
                // The first time what was known was old; after that it changes while it is asked for.
                self.servers.home().shared().runtime.sleep(PAUSE * self.hops).await;
                self.hops += 1;
                self.client = self.servers.moved(self.volume, &self.client).await?;
                Ok(None)
            }
            Ok(answer) => answer.map(Some),
            Err(other) => {
                self.client = other;
                Ok(None)
            }
        }
    }
}
