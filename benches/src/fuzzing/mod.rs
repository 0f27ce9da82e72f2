//! What the fuzz targets run, here so that plain tests can replay their corpora without a fuzzer.

pub mod handle;
pub mod input;

use larder_protocol::service::LarderRequest;
use larder_protocol::transport::{decode_call, encode_call};
use tarpc::ClientMessage;

/// Takes whatever bytes may arrive on a connection: a message or an error, and a message is one that can be sent.
///
/// # Panics
/// If a message that decodes does not encode again to the same message.
pub fn decode(bytes: &[u8]) {
    let Ok(ClientMessage::Request(request)) = decode_call::<LarderRequest>(bytes) else { return };
    let shown = format!("{:?}", request.message);
    let again = match encode_call(request.id, request.message) {
        Ok(frame) => decode_call::<LarderRequest>(&frame),
        Err(error) => panic!("a message that arrived cannot be sent, {error}: {shown}"),
    };
    let Ok(ClientMessage::Request(again)) = again else { panic!("a message that was sent does not arrive: {shown}") };
    assert_eq!(format!("{:?}", again.message), shown);
}
