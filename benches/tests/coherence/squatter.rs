//! A client that takes callbacks and renews its lease for ever, and acknowledges nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::{ClientId, Fid};
use larder_protocol::service::LarderClient;
use larder_protocol::service::callback::{Renew, Renewed};
use larder_protocol::service::file::Query;
use larder_protocol::transport::ClientTransport;
use rand::Rng;
use rand::rngs::SmallRng;
use tarpc::context::Context;
use tokio::time::sleep;

use crate::world::World;

const SQUATTER: ClientId = ClientId(0x5001);

fn context() -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + Duration::from_secs(500);
    context
}

/// Sits on callbacks on these objects until it is dropped.
pub(crate) async fn squat(world: Arc<World>, objects: Vec<Fid>, mut random: SmallRng) {
    for generation in 1.. {
        // It ends with the connection, or with the server.
        let _ = squat_once(&world, &objects, generation, &mut random).await;
        sleep(Duration::from_millis(random.random_range(1..500))).await;
    }
}

async fn squat_once(world: &Arc<World>, objects: &[Fid], generation: u64, random: &mut SmallRng) -> Option<()> {
    let near = world.dial(Weather::default(), 0).ok()?;
    let client = LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn();
    let hello = Hello {
        prompt: false,
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        client: SQUATTER,
        incarnation: 1,
        channel: 0,
        generation,
        software: "test".to_owned(),
    };
    let epoch = client.hello(context(), hello).await.ok()?.ok()?.epoch;
    let mut lease = None;
    loop {
        match client.renew(context(), Renew { epoch, lease, acked: 0 }).await.ok()?.ok()? {
            Renewed::Granted { lease: granted } => lease = Some(granted),
            Renewed::BreaksFirst(_) => {}
            Renewed::Lapsed => lease = None,
        }
        for fid in objects {
            let _ = client.promised(context(), Credential::root(), Query::Getattr { fid: *fid }).await.ok()?;
        }
        sleep(Duration::from_millis(random.random_range(1..3000))).await;
    }
}
