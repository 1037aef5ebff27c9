//! Operations of all ranks over TCP: rank 0 receives in the order of the ranks, adds, and sends back.

use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::DistributedError;
use crate::frame::{self, Kind, LONGEST_SENTENCE, Operation, ReadError, Reader, is_closed};
use crate::host::readable;
use crate::reduce::{Item, Reduce};

/// The most bytes of the items that are compared.
const LONGEST_ITEMS: usize = 4 << 20;
/// How often a rank that waits looks whether it must say that it is alive.
const TICK: Duration = Duration::from_millis(250);
/// The least time between two messages that a rank is alive.
const PULSE: Duration = Duration::from_secs(1);
/// How much longer the other ranks wait than rank 0, whose sentence names the rank that is late.
const GRACE: Duration = Duration::from_secs(5);
/// The time in which the others read why the training ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// The ranks of a training, connected by TCP. [`connect`](crate::connect) makes it.
///
/// A training whose rank is dropped without [`Reduce::end`] has gone for the others.
pub struct Tcp {
    rank: usize,
    world: usize,
    host: String,
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    /// All other ranks in order, on rank 0; rank 0 alone on the others.
    peers: Vec<Peer>,
    /// The number of the next operation.
    sequence: u32,
    /// Why the training has ended.
    ended: Option<String>,
    last_pulse: Instant,
    /// The payload that was received last.
    received: Vec<u8>,
}

/// Another rank.
pub(crate) struct Peer {
    pub(crate) rank: usize,
    pub(crate) host: String,
    pub(crate) stream: TcpStream,
}

impl Peer {
    fn error(&self, error: ReadError, patience: Duration) -> DistributedError {
        let (rank, host) = (self.rank, self.host.clone());
        match error {
            ReadError::Closed => DistributedError::Gone { rank, host },
            ReadError::Silent => {
                DistributedError::Silent { rank, host, seconds: patience.as_secs() }
            }
            ReadError::Malformed => DistributedError::Protocol { rank, host },
            ReadError::Io(source) => DistributedError::Connection { rank, host, source },
        }
    }

    fn write_error(&self, source: std::io::Error, patience: Duration) -> DistributedError {
        let error = match source.kind() {
            kind if is_closed(kind) => ReadError::Closed,
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => ReadError::Silent,
            _ => ReadError::Io(source),
        };
        self.error(error, patience)
    }

    /// Receives the next part of an operation into `bytes`.
    fn receive(
        &self,
        call: Call,
        limit: usize,
        patience: Duration,
        on_wait: &mut dyn FnMut(),
        bytes: &mut Vec<u8>,
    ) -> Result<(), DistributedError> {
        let mut reader = Reader { input: &self.stream, patience, on_wait };
        let failed = |error| self.error(error, patience);
        loop {
            let header = reader.header().map_err(failed)?;
            match header.kind {
                Kind::Alive if header.length == 0 => {}
                Kind::End => {
                    reader.payload(header.length, LONGEST_SENTENCE, bytes).map_err(failed)?;
                    let text: String = String::from_utf8_lossy(bytes).into_owned();
                    let text = text.chars().filter(|c| !c.is_control()).collect();
                    return Err(DistributedError::Ended(text));
                }
                Kind::Data
                    if header.operation == call.operation as u8
                        && header.sequence == call.sequence =>
                {
                    return reader.payload(header.length, limit, bytes).map_err(failed);
                }
                _ => return Err(failed(ReadError::Malformed)),
            }
        }
    }

    fn send(&self, call: Call, payload: &[u8], patience: Duration) -> Result<(), DistributedError> {
        let Call { operation, sequence } = call;
        let sent = frame::write(&self.stream, Kind::Data, operation, sequence, payload);
        sent.map_err(|error| self.write_error(error, patience))
    }
}

/// An operation and its number.
#[derive(Clone, Copy)]
struct Call {
    operation: Operation,
    sequence: u32,
}

impl Tcp {
    /// The ranks behind these connections.
    pub(crate) fn new(
        rank: usize,
        world: usize,
        host: String,
        patience: Duration,
        peers: Vec<Peer>,
    ) -> std::io::Result<Self> {
        for peer in &peers {
            peer.stream.set_nodelay(true)?;
            peer.stream.set_read_timeout(Some(TICK.min(patience)))?;
            peer.stream.set_write_timeout(Some(patience))?;
        }
        let state = State {
            peers,
            sequence: 0,
            ended: None,
            last_pulse: Instant::now(),
            received: Vec::new(),
        };
        Ok(Self { rank, world, host, patience, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one operation. If it fails, the others are told why.
    fn call<T>(
        &self,
        operation: Operation,
        run: impl FnOnce(&mut State, Call) -> Result<T, DistributedError>,
    ) -> Result<T, DistributedError> {
        let mut state = self.state();
        if let Some(sentence) = &state.ended {
            return Err(DistributedError::Ended(sentence.clone()));
        }
        let call = Call { operation, sequence: state.sequence };
        state.sequence = state.sequence.wrapping_add(1);
        let result = run(&mut state, call);
        match result {
            // Rank 0 may have said why before it closed the connection.
            Err(DistributedError::Gone { .. } | DistributedError::Connection { .. })
                if self.rank > 0 =>
            {
                let error = self.last_words(&mut state, call).or(result.err());
                let error = error.unwrap_or(DistributedError::Ended(String::new()));
                state.finish(&error.to_string());
                Err(error)
            }
            Err(error) => {
                state.finish(&error.to_string());
                Err(error)
            }
            done => done,
        }
    }

    /// The sentence with which rank 0 ended, if it can still be read.
    fn last_words(&self, state: &mut State, call: Call) -> Option<DistributedError> {
        let State { peers, received, .. } = state;
        let answer = peers.first()?.receive(call, 0, FAREWELL, &mut || (), received);
        answer.err().filter(|error| matches!(error, DistributedError::Ended(_)))
    }

    /// Receives a part of every other rank, in order. While one is late, the others hear that rank 0 waits.
    fn receive_each(
        &self,
        state: &mut State,
        call: Call,
        limit: usize,
        mut take: impl FnMut(&Peer, &[u8]) -> Result<(), DistributedError>,
    ) -> Result<(), DistributedError> {
        let State { peers, received, last_pulse, .. } = state;
        for peer in peers.iter() {
            let mut on_wait = || {
                if last_pulse.elapsed() >= PULSE {
                    pulse(peers, last_pulse);
                }
            };
            peer.receive(call, limit, self.patience, &mut on_wait, received)?;
            take(peer, received)?;
        }
        Ok(())
    }

    /// Receives the part of rank 0.
    fn receive(&self, state: &mut State, call: Call, limit: usize) -> Result<(), DistributedError> {
        let State { peers, received, .. } = state;
        match peers.first() {
            Some(peer) => peer.receive(call, limit, self.patience + GRACE, &mut || (), received),
            None => Ok(()),
        }
    }

    fn send_all(&self, state: &State, call: Call, payload: &[u8]) -> Result<(), DistributedError> {
        state.peers.iter().try_for_each(|peer| peer.send(call, payload, self.patience))
    }
}

impl State {
    /// Tells the others why the training ends, and gives them time to read it.
    fn finish(&mut self, sentence: &str) {
        if self.ended.replace(sentence.to_owned()).is_some() {
            return;
        }
        let mut end = sentence.len().min(LONGEST_SENTENCE);
        while !sentence.is_char_boundary(end) {
            end -= 1;
        }
        let text = &sentence.as_bytes()[..end];
        for peer in &self.peers {
            // A rank that has gone cannot be told.
            let _ = peer.stream.set_write_timeout(Some(FAREWELL));
            let _ = frame::write(&peer.stream, Kind::End, Operation::None, 0, text);
            let _ = peer.stream.shutdown(Shutdown::Write);
        }
        // A connection that is closed with bytes unread is reset, and the other side would lose the sentence.
        let until = Instant::now() + FAREWELL;
        let mut rest = [0; 4096];
        for peer in &self.peers {
            while Instant::now() < until {
                match std::io::Read::read(&mut &peer.stream, &mut rest) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if is_closed(error.kind()) => break,
                    Err(_) => {}
                }
            }
        }
        self.peers.clear();
    }
}

/// Says to all peers that this rank is alive. An operation finds those that cannot be told.
fn pulse(peers: &[Peer], last_pulse: &mut Instant) {
    *last_pulse = Instant::now();
    for peer in peers {
        let _ = frame::write(&peer.stream, Kind::Alive, Operation::None, 0, &[]);
    }
}

impl Reduce for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), DistributedError> {
        let limit = size_of_val(values);
        self.call(Operation::Sum, |state, call| {
            if self.rank > 0 {
                self.send_all(state, call, &to_bytes(values))?;
                self.receive(state, call, limit)?;
                let peer = &state.peers[0];
                return copy(peer, &state.received, values);
            }
            let mut sums: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
            self.receive_each(state, call, limit, |peer, bytes| {
                let (parts, _) = bytes.as_chunks::<4>();
                if bytes.len() != limit {
                    return Err(peer.error(ReadError::Malformed, self.patience));
                }
                for (sum, part) in sums.iter_mut().zip(parts) {
                    *sum += f64::from(f32::from_le_bytes(*part));
                }
                Ok(())
            })?;
            for (value, sum) in values.iter_mut().zip(&sums) {
                *value = *sum as f32;
            }
            self.send_all(state, call, &to_bytes(values))
        })
    }

    fn broadcast(&self, bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, DistributedError> {
        self.call(Operation::Broadcast, |state, call| {
            if self.rank > 0 {
                self.receive(state, call, limit)?;
                return Ok(std::mem::take(&mut state.received));
            }
            self.send_all(state, call, &bytes)?;
            Ok(bytes)
        })
    }

    fn gather(&self, bytes: Vec<u8>, limit: usize) -> Result<Vec<Vec<u8>>, DistributedError> {
        self.call(Operation::Gather, |state, call| {
            if self.rank > 0 {
                // Rank 0 may receive for longer from others than a write may take.
                self.receive(state, call, 0)?;
                self.send_all(state, call, &bytes)?;
                return Ok(Vec::new());
            }
            let mut all = vec![bytes];
            for index in 0..state.peers.len() {
                let State { peers, received, last_pulse, .. } = &mut *state;
                let mut on_wait = || {
                    if last_pulse.elapsed() >= PULSE {
                        pulse(peers, last_pulse);
                    }
                };
                let peer = &peers[index];
                peer.send(call, &[], self.patience)?;
                peer.receive(call, limit, self.patience, &mut on_wait, received)?;
                all.push(std::mem::take(received));
            }
            Ok(all)
        })
    }

    fn refuse(&self, rank: usize, what: &str) -> DistributedError {
        let mut state = self.state();
        let host = state.peers.iter().find(|peer| peer.rank == rank).map(|peer| peer.host.clone());
        let host = host.unwrap_or_else(|| self.host.clone());
        let error = DistributedError::Foreign { rank, host, what: what.to_owned() };
        state.finish(&error.to_string());
        error
    }

    fn agree(&self, items: &[Item]) -> Result<(), DistributedError> {
        let own = to_lines(items);
        self.call(Operation::Agree, |state, call| {
            if self.rank > 0 {
                self.send_all(state, call, own.as_bytes())?;
                return self.receive(state, call, 0);
            }
            self.receive_each(state, call, LONGEST_ITEMS, |peer, bytes| {
                match bytes == own.as_bytes() {
                    true => Ok(()),
                    false => Err(DistributedError::Differs {
                        rank: peer.rank,
                        host: peer.host.clone(),
                        what: first_difference(&own, &String::from_utf8_lossy(bytes)),
                    }),
                }
            })?;
            self.send_all(state, call, &[])
        })
    }

    fn alive(&self) {
        let mut state = self.state();
        if state.last_pulse.elapsed() >= PULSE {
            let State { peers, last_pulse, .. } = &mut *state;
            pulse(peers, last_pulse);
        }
    }

    fn end(&self, sentence: &str) {
        self.state().finish(&format!("rank {} on {}: {sentence}", self.rank, self.host));
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(values)];
    let (parts, _) = bytes.as_chunks_mut::<4>();
    for (part, value) in parts.iter_mut().zip(values) {
        *part = value.to_le_bytes();
    }
    bytes
}

fn copy(peer: &Peer, bytes: &[u8], values: &mut [f32]) -> Result<(), DistributedError> {
    let (parts, _) = bytes.as_chunks::<4>();
    if bytes.len() != size_of_val(values) {
        return Err(peer.error(ReadError::Malformed, Duration::ZERO));
    }
    for (value, part) in values.iter_mut().zip(parts) {
        *value = f32::from_le_bytes(*part);
    }
    Ok(())
}

/// One line an item, its name before a tab.
fn to_lines(items: &[Item]) -> String {
    let plain = |text: &str| text.replace(|c: char| c.is_control(), " ");
    items.iter().map(|item| format!("{}\t{}\n", plain(&item.what), plain(&item.value))).collect()
}

/// The name of the first item that differs, or that only one of the two has.
pub(crate) fn first_difference(own: &str, other: &str) -> String {
    let [mut own, mut other] = [own.lines(), other.lines()];
    loop {
        match (own.next(), other.next()) {
            (a, b) if a == b && a.is_some() => {}
            (a, b) => {
                let line = a.or(b).unwrap_or_default();
                let name = line.split('\t').next().unwrap_or_default();
                return readable(name);
            }
        }
    }
}
