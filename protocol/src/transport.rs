//! Messages on a byte stream.
//!
//! A frame is two little-endian `u32` (bytes of header, bytes of payload), the header (one bincode message) and the
//! payload (the bytes of its [`Payload`](crate::payload::Payload)s, in order). Sizes are checked against
//! [`limits`](crate::limits) before anything is allocated for them. A frame that is malformed ends the stream with an
//! error, and with it this connection and nothing else.
//!
//! tarpc's own message types are not what travels: [`Call`] and [`Answer`] are, and are turned into tarpc's at either
//! end. So the wire format is Larder's to keep stable, and a deadline is bounded before tarpc computes with it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bincode::Options;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tarpc::{ClientMessage, Request, Response, ServerError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::{MAX_DEADLINE, MAX_HEADER, MAX_PAYLOAD};
use crate::payload;

/// Bytes of the two lengths that begin a frame.
const PREFIX: usize = 8;
/// A frame's payload limit: one request's payload and some room for small ones beside it.
const MAX_FRAME_PAYLOAD: usize = MAX_PAYLOAD + 4096;
/// Bytes read from the socket at a time while no large frame is under way.
const READ_CHUNK: usize = 64 << 10;
/// Payloads up to this size are copied behind the header instead of becoming a segment of their own.
const INLINE_PAYLOAD: usize = 2048;
/// The sink asks to be flushed before it takes more than this many bytes.
const MAX_BUFFERED: usize = 4 << 20;

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call<T> {
    /// A request.
    Request {
        /// Its number on this connection.
        id: u64,
        /// How long the client will wait, in milliseconds.
        timeout_ms: u32,
        /// What is asked.
        body: T,
    },
    /// The client no longer waits for this request.
    Cancel {
        /// Its number.
        id: u64,
    },
}

/// What a server sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer<T> {
    /// The request's number.
    id: u64,
    /// The answer, or why there is none.
    body: Result<T, String>,
}

/// One side's way to turn its messages into bytes and the other's bytes into messages.
pub trait Codec {
    /// What arrives.
    type In;
    /// What is sent.
    type Out;

    /// Encodes `message` behind what `header` holds and returns its payloads.
    ///
    /// # Errors
    /// `InvalidInput` for a message that is larger than the limits.
    fn encode(message: Self::Out, header: &mut BytesMut) -> io::Result<Vec<Bytes>>;

    /// Decodes one frame.
    ///
    /// # Errors
    /// `InvalidData` for anything but exactly one message.
    fn decode(header: &[u8], payload: Bytes) -> io::Result<Self::In>;
}

/// The client's side.
pub struct ClientSide<Req, Resp>(PhantomData<fn(Req) -> Resp>);

/// The server's side.
pub struct ServerSide<Req, Resp>(PhantomData<fn(Req) -> Resp>);

impl<Req: Serialize, Resp: DeserializeOwned> Codec for ClientSide<Req, Resp> {
    type In = Response<Resp>;
    type Out = ClientMessage<Req>;

    fn encode(message: ClientMessage<Req>, header: &mut BytesMut) -> io::Result<Vec<Bytes>> {
        let call = match message {
            ClientMessage::Request(request) => {
                let timeout = request.context.deadline.saturating_duration_since(Instant::now()).min(MAX_DEADLINE);
                Call::Request { id: request.id, timeout_ms: timeout.as_millis() as u32, body: request.message }
            }
            ClientMessage::Cancel { request_id, .. } => Call::Cancel { id: request_id },
            _ => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message that Larder does not send"));
            }
        };
        encode(&call, header)
    }

    fn decode(header: &[u8], payload: Bytes) -> io::Result<Response<Resp>> {
        let answer: Answer<Resp> = decode(header, payload)?;
        Ok(Response {
            request_id: answer.id,
            message: answer.body.map_err(|detail| ServerError::new(io::ErrorKind::Other, detail)),
        })
    }
}

impl<Req: DeserializeOwned, Resp: Serialize> Codec for ServerSide<Req, Resp> {
    type In = ClientMessage<Req>;
    type Out = Response<Resp>;

    fn encode(message: Response<Resp>, header: &mut BytesMut) -> io::Result<Vec<Bytes>> {
        let answer = Answer { id: message.request_id, body: message.message.map_err(|error| error.detail) };
        encode(&answer, header)
    }

    fn decode(header: &[u8], payload: Bytes) -> io::Result<ClientMessage<Req>> {
        Ok(match decode(header, payload)? {
            Call::Request { id, timeout_ms, body } => {
                let mut context = tarpc::context::current();
                let timeout = Duration::from_millis(timeout_ms.into()).min(MAX_DEADLINE);
                context.deadline = Instant::now() + timeout;
                ClientMessage::Request(Request { context, id, message: body })
            }
            Call::Cancel { id } => {
                ClientMessage::Cancel { trace_context: tarpc::trace::Context::default(), request_id: id }
            }
        })
    }
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_varint_encoding().with_limit(MAX_HEADER as u64)
}

fn encode<T: Serialize>(message: &T, header: &mut BytesMut) -> io::Result<Vec<Bytes>> {
    let start = header.len();
    // Not `serialize_into`, which walks the message twice to learn its size, and would collect each payload twice.
    let (result, payloads) = payload::collect(|| {
        message.serialize(&mut bincode::Serializer::new(bytes::BufMut::writer(&mut *header), options()))
    });
    result.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    if header.len() - start > MAX_HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is larger than a frame's header may be"));
    }
    if payloads.iter().map(Bytes::len).sum::<usize>() > MAX_FRAME_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the payload is larger than a frame may carry"));
    }
    Ok(payloads)
}

fn decode<T: DeserializeOwned>(header: &[u8], payload: Bytes) -> io::Result<T> {
    // bincode's `deserialize` refuses bytes left over in the header; payload left over is refused here.
    let (result, left) = payload::supply(payload, || options().with_limit(MAX_HEADER as u64).deserialize(header));
    match result {
        Ok(message) if left == 0 => Ok(message),
        Ok(_) => Err(malformed("the payload is longer than the header says")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame: {what}"))
}

/// A stream and sink of messages over a byte stream.
pub struct Framed<S, C> {
    io: S,
    incoming: BytesMut,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    scratch: BytesMut,
    codec: PhantomData<fn() -> C>,
}

/// The transport of a client that sends `Req` and gets `Resp`.
pub type ClientTransport<S, Req, Resp> = Framed<S, ClientSide<Req, Resp>>;

/// The transport of a server that gets `Req` and answers `Resp`.
pub type ServerTransport<S, Req, Resp> = Framed<S, ServerSide<Req, Resp>>;

impl<S, C: Codec> Framed<S, C> {
    /// Speaks over this byte stream.
    pub fn new(io: S) -> Framed<S, C> {
        Framed {
            io,
            incoming: BytesMut::new(),
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            scratch: BytesMut::new(),
            codec: PhantomData,
        }
    }

    fn take_frame(&mut self) -> io::Result<Option<C::In>> {
        let Some(prefix) = self.incoming.get(..PREFIX) else {
            self.incoming.reserve(READ_CHUNK);
            return Ok(None);
        };
        let (mut header_len, mut payload_len) = (&prefix[..4], &prefix[4..]);
        let header_len = header_len.get_u32_le() as usize;
        let payload_len = payload_len.get_u32_le() as usize;
        if header_len > MAX_HEADER || payload_len > MAX_FRAME_PAYLOAD {
            return Err(malformed("larger than the limit"));
        }
        let total = PREFIX + header_len + payload_len;
        if self.incoming.len() < total {
            self.incoming.reserve((total - self.incoming.len()).max(READ_CHUNK));
            return Ok(None);
        }
        let mut frame = self.incoming.split_to(total).freeze();
        frame.advance(PREFIX);
        let header = frame.split_to(header_len);
        C::decode(&header, frame).map(Some)
    }

    fn enqueue(&mut self, message: C::Out) -> io::Result<()> {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(&[0; PREFIX]);
        let payloads = match C::encode(message, &mut self.scratch) {
            Ok(payloads) => payloads,
            Err(error) => {
                self.scratch.truncate(start);
                return Err(error);
            }
        };
        let header_len = (self.scratch.len() - start - PREFIX) as u32;
        let payload_len: usize = payloads.iter().map(Bytes::len).sum();
        self.scratch[start..start + 4].copy_from_slice(&header_len.to_le_bytes());
        self.scratch[start + 4..start + 8].copy_from_slice(&(payload_len as u32).to_le_bytes());
        for payload in payloads {
            if payload.len() <= INLINE_PAYLOAD {
                self.scratch.extend_from_slice(&payload);
            } else {
                self.seal_scratch();
                self.outgoing_bytes += payload.len();
                self.outgoing.push_back(payload);
            }
        }
        // What is left stays in `scratch`, so that small messages sent together leave in one segment.
        Ok(())
    }

    fn seal_scratch(&mut self) {
        if !self.scratch.is_empty() {
            self.outgoing_bytes += self.scratch.len();
            let sealed = self.scratch.split().freeze();
            self.outgoing.push_back(sealed);
        }
    }
}

impl<S: AsyncRead + Unpin, C: Codec> Stream for Framed<S, C> {
    type Item = io::Result<C::In>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<C::In>>> {
        let this = &mut *self;
        loop {
            match this.take_frame() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut this.incoming)) {
                Ok(0) if this.incoming.is_empty() => return Poll::Ready(None),
                Ok(0) => {
                    return Poll::Ready(Some(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection ended inside a frame",
                    ))));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, C: Codec> Sink<C::Out> for Framed<S, C> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing_bytes + self.scratch.len() < MAX_BUFFERED {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: C::Out) -> io::Result<()> {
        self.enqueue(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        const SLICES: usize = 32;
        let this = &mut *self;
        this.seal_scratch();
        while !this.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = this.outgoing.len().min(SLICES);
            for (slice, bytes) in slices.iter_mut().zip(&this.outgoing) {
                *slice = IoSlice::new(bytes);
            }
            let mut written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &slices[..used]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.outgoing_bytes -= written;
            while let Some(front) = this.outgoing.front_mut() {
                if front.len() > written {
                    front.advance(written);
                    break;
                }
                written -= front.len();
                this.outgoing.pop_front();
                if written == 0 {
                    break;
                }
            }
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Decodes one client frame from `bytes`, as a server does with what arrives on a connection: the entry for fuzzing.
///
/// # Errors
/// `InvalidData` for malformed frames, `UnexpectedEof` for incomplete ones.
pub fn decode_call<Req: DeserializeOwned>(bytes: &[u8]) -> io::Result<ClientMessage<Req>> {
    let mut framed: Framed<Complete, ServerSide<Req, ()>> = Framed::new(Complete);
    framed.incoming.extend_from_slice(bytes);
    framed.take_frame()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Encodes one client frame, for tests and fuzzing seeds.
///
/// # Errors
/// `InvalidInput` for a message over the limits.
pub fn encode_call<Req: Serialize>(id: u64, body: Req) -> io::Result<Vec<u8>> {
    let message = ClientMessage::Request(Request { context: tarpc::context::current(), id, message: body });
    let mut framed: Framed<Complete, ClientSide<Req, ()>> = Framed::new(Complete);
    framed.enqueue(message)?;
    framed.seal_scratch();
    Ok(framed.outgoing.iter().flat_map(|bytes| bytes.iter().copied()).collect())
}

/// A byte stream with nothing more to read.
struct Complete;

impl AsyncRead for Complete {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};

    use super::*;
    use crate::attr::Credential;
    use crate::ids::{Fid, VolumeId};
    use crate::payload::Payload;
    use crate::service::LarderRequest;
    use crate::service::file::{Query, WriteRequest};

    type Client<S> = ClientTransport<S, LarderRequest, u32>;
    type Server<S> = ServerTransport<S, LarderRequest, u32>;

    const FID: Fid = Fid { volume: VolumeId(1), vnode: 9, generation: 3 };

    fn write(len: usize) -> LarderRequest {
        LarderRequest::Write {
            cred: Credential::root(),
            request: WriteRequest::one(FID, 5, Payload((0..len).map(|i| i as u8).collect()), false),
        }
    }

    fn request(id: u64, message: LarderRequest) -> ClientMessage<LarderRequest> {
        ClientMessage::Request(Request { context: tarpc::context::current(), id, message })
    }

    #[tokio::test]
    async fn payloads_of_all_sizes_arrive_whole_and_in_order() {
        // A pipe smaller than the frames, so that both sides meet every partial read and write.
        let (near, far) = tokio::io::duplex(1000);
        let mut client: Client<_> = Framed::new(near);
        let mut server: Server<_> = Framed::new(far);
        let sizes = [0, 1, INLINE_PAYLOAD, INLINE_PAYLOAD + 1, READ_CHUNK, MAX_PAYLOAD, 3];
        let sending = async {
            for (id, size) in sizes.into_iter().enumerate() {
                client.feed(request(id as u64, write(size))).await.unwrap();
            }
            client.flush().await.unwrap();
            client.close().await.unwrap();
        };
        let receiving = async {
            let mut seen = Vec::new();
            while let Some(message) = server.next().await {
                let ClientMessage::Request(got) = message.unwrap() else { panic!("not a request") };
                assert_eq!(format!("{:?}", got.message), format!("{:?}", write(sizes[got.id as usize])));
                let LarderRequest::Write { request, .. } = got.message else { panic!("not a write") };
                assert!(request.parts[0].data.0.iter().enumerate().all(|(i, b)| *b == i as u8));
                seen.push(got.id);
            }
            seen
        };
        let ((), seen) = tokio::join!(sending, receiving);
        assert_eq!(seen, (0..sizes.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_hostile_deadline_is_cut() {
        let call = Call::Request {
            id: 1,
            timeout_ms: u32::MAX,
            body: LarderRequest::Query { cred: Credential::root(), query: Query::Getattr { fid: FID } },
        };
        let mut header = BytesMut::new();
        encode(&call, &mut header).unwrap();
        let ClientMessage::Request(request) = ServerSide::<LarderRequest, ()>::decode(&header, Bytes::new()).unwrap()
        else {
            panic!("not a request")
        };
        assert!(request.context.deadline <= Instant::now() + MAX_DEADLINE);
    }

    #[test]
    fn frames_that_lie_about_their_sizes_are_refused() {
        let good = encode_call(1, write(5000)).unwrap();
        assert!(decode_call::<LarderRequest>(&good).is_ok());
        let with_lengths = |header: u32, payload: u32| {
            let mut bytes = good.clone();
            bytes[..4].copy_from_slice(&header.to_le_bytes());
            bytes[4..8].copy_from_slice(&payload.to_le_bytes());
            decode_call::<LarderRequest>(&bytes).map(|_| ()).map_err(|error| error.kind())
        };
        let header = u32::from_le_bytes(good[..4].try_into().unwrap());
        assert_eq!(with_lengths(header, 4999), Err(io::ErrorKind::InvalidData), "payload too short");
        assert_eq!(with_lengths(header - 1, 5001), Err(io::ErrorKind::InvalidData), "header too short");
        assert_eq!(with_lengths(u32::MAX, 0), Err(io::ErrorKind::InvalidData), "over the limit");
        assert_eq!(with_lengths(header, u32::MAX), Err(io::ErrorKind::InvalidData), "over the limit");
        assert_eq!(with_lengths(header, 5001), Err(io::ErrorKind::UnexpectedEof), "incomplete");
    }

    #[tokio::test]
    async fn a_message_over_the_limit_fails_at_the_sender_and_spoils_nothing() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut client: Client<_> = Framed::new(near);
        let mut server: Server<_> = Framed::new(far);
        let error = client.feed(request(1, write(MAX_FRAME_PAYLOAD + 1))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        client.send(request(2, write(10))).await.unwrap();
        let ClientMessage::Request(got) = server.next().await.unwrap().unwrap() else { panic!("not a request") };
        assert_eq!(got.id, 2);
    }
}
