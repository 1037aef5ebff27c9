//! How the ranks find each other: rank 0 listens, the others connect and say who they are.

use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::DistributedError;
use crate::frame::{self, Kind, LONGEST_SENTENCE, Operation, ReadError, Reader};
use crate::hello::{self, Hello};
use crate::host;
use crate::launch::Launch;
use crate::tcp::{Peer, Tcp};

/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// The time that one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The time in which a process that has connected says who it is.
const HELLO: Duration = Duration::from_secs(5);
/// The time after which a name without an address is a mistake.
const RESOLVE: Duration = Duration::from_secs(20);
/// The time after which a rank says that it waits.
const NOTE: Duration = Duration::from_secs(5);
/// The most processes that may be about to say who they are.
const MOST_PENDING: usize = 256;

/// Connects this rank with all others, within `patience`. `on_wait` gets a sentence if that takes long.
///
/// Afterwards `patience` is the longest time that a rank may say nothing in an operation.
///
/// # Errors
/// An address that cannot be used, ranks that do not come, or ranks that do not fit each other.
pub fn connect(
    launch: &Launch,
    patience: Duration,
    on_wait: &mut dyn FnMut(&str),
) -> Result<Tcp, DistributedError> {
    let own = Hello::new(&launch.token, launch.rank, launch.world, &host::name());
    let address = format!("{}:{}", launch.address, launch.port);
    let mut wait = Wait { until: Instant::now() + patience, note: Instant::now() + NOTE, on_wait };
    let peers = match launch.rank {
        0 => {
            let refused = |source| DistributedError::Listen { address: address.clone(), source };
            let listener = listen(launch).map_err(refused)?;
            accept_all(&listener, &own, &address, patience, &mut wait)?
        }
        _ => vec![reach(launch, &own, &address, patience, &mut wait)?],
    };
    Tcp::new(launch.rank, launch.world, own.host, patience, peers)
        .map_err(|source| DistributedError::Listen { address, source })
}

/// What is waited for, and until when.
struct Wait<'a> {
    until: Instant,
    /// When the user is told.
    note: Instant,
    on_wait: &'a mut dyn FnMut(&str),
}

impl Wait<'_> {
    /// Whether the time is over. Tells the user once what is waited for.
    fn is_over(&mut self, what: impl FnOnce() -> String) -> bool {
        let now = Instant::now();
        if now >= self.note {
            self.note = now + Duration::from_secs(3600);
            (self.on_wait)(&what());
        }
        now >= self.until
    }
}

/// The listener of rank 0. It is open to other machines only if the address is no loopback address.
fn listen(launch: &Launch) -> io::Result<TcpListener> {
    let addresses: Vec<SocketAddr> =
        (launch.address.as_str(), launch.port).to_socket_addrs()?.collect();
    let first = addresses.first().copied();
    let first = first.ok_or_else(|| io::Error::other("the name has no address"))?;
    // An address of another machine is a mistake that would be waited for.
    TcpListener::bind((first.ip(), 0))?;
    // Many systems give their own name a loopback address, which other machines cannot reach.
    let is_name = launch.address.parse::<IpAddr>().is_err() && launch.address != "localhost";
    let ip = match (is_name, first.ip()) {
        (true, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (true, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        (false, ip) => ip,
    };
    let listener = TcpListener::bind((ip, launch.port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A process that has connected, and what it said.
type Visitor = (TcpStream, Option<Hello>);

/// Waits for all other ranks, on rank 0. Returns them in order.
fn accept_all(
    listener: &TcpListener,
    own: &Hello,
    address: &str,
    patience: Duration,
    wait: &mut Wait<'_>,
) -> Result<Vec<Peer>, DistributedError> {
    let (sender, visitors): (Sender<Visitor>, Receiver<Visitor>) = channel();
    let mut found: Vec<Option<Peer>> = (1..own.world).map(|_| None).collect();
    let (mut pending, mut strangers) = (0, 0);
    while found.iter().any(Option::is_none) {
        while pending < MOST_PENDING
            && let Ok((stream, _)) = listener.accept()
        {
            pending += 1;
            let sender = sender.clone();
            // A visitor that says nothing must not keep the others.
            std::thread::spawn(move || {
                let hello = read_hello(&stream);
                let _ = sender.send((stream, hello));
            });
        }
        if let Ok((stream, hello)) = visitors.recv_timeout(PAUSE) {
            pending -= 1;
            match hello.filter(|hello| hello.has_token_of(own)) {
                Some(hello) => admit(own, hello, stream, &mut found)?,
                None => {
                    strangers += 1;
                    refuse(
                        &[&stream],
                        "rank 0 at this address is of another job: give all ranks one token",
                    );
                }
            }
        }
        let missing = || {
            let ranks = found.iter().enumerate().filter(|(_, peer)| peer.is_none());
            let ranks: Vec<_> = ranks.map(|(index, _)| (index + 1).to_string()).collect();
            ranks.join(", ")
        };
        if wait.is_over(|| format!("rank 0 waits at {address} for rank {}", missing())) {
            let error = DistributedError::Missing {
                ranks: missing(),
                host: own.host.clone(),
                address: address.to_owned(),
                seconds: patience.as_secs(),
                refused: match strangers {
                    0 => String::new(),
                    count => format!(" ({count} connections of other jobs were refused)"),
                },
            };
            let streams: Vec<_> = found.iter().flatten().map(|peer| &peer.stream).collect();
            refuse(&streams, &error.to_string());
            return Err(error);
        }
    }
    let peers: Vec<Peer> = found.into_iter().flatten().collect();
    for peer in &peers {
        let welcome =
            frame::write(&peer.stream, Kind::Welcome, Operation::None, 0, own.host.as_bytes());
        welcome.map_err(|_| DistributedError::Gone { rank: peer.rank, host: peer.host.clone() })?;
    }
    Ok(peers)
}

/// Takes a rank in. One that does not fit ends all.
fn admit(
    own: &Hello,
    hello: Hello,
    stream: TcpStream,
    found: &mut [Option<Peer>],
) -> Result<(), DistributedError> {
    let place = hello.rank.checked_sub(1).and_then(|index| found.get_mut(index));
    let other = place.as_ref().and_then(|place| place.as_ref()).map(|peer| peer.host.clone());
    let twice = |other: String| {
        let Hello { rank, host, .. } = &hello;
        format!("two processes are rank {rank}, on {other} and on {host}; number the ranks")
    };
    match (own.refusal(&hello).or(other.map(twice)), place) {
        (None, Some(place)) => {
            *place = Some(Peer { rank: hello.rank, host: hello.host, stream });
            Ok(())
        }
        (reason, _) => {
            let reason = reason.unwrap_or_default();
            let others = found.iter().flatten().map(|peer| &peer.stream);
            refuse(&others.chain([&stream]).collect::<Vec<_>>(), &reason);
            Err(DistributedError::Refused(reason))
        }
    }
}

/// Reads what a visitor says. `None` if it is no rank.
fn read_hello(stream: &TcpStream) -> Option<Hello> {
    // A socket inherits the listener's mode on some systems.
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(PAUSE)).ok()?;
    stream.set_write_timeout(Some(HELLO)).ok()?;
    read_hello_of(stream, HELLO)
}

/// Reads a hello within `patience`.
pub(crate) fn read_hello_of(input: impl io::Read, patience: Duration) -> Option<Hello> {
    let mut reader = Reader { input, patience, on_wait: &mut || () };
    let header = reader.header().ok().filter(|header| header.kind == Kind::Hello)?;
    let mut bytes = Vec::new();
    reader.payload(header.length, hello::LONGEST, &mut bytes).ok()?;
    Hello::from_bytes(&bytes)
}

/// Says to processes that have connected why they cannot take part.
fn refuse(streams: &[&TcpStream], reason: &str) {
    for stream in streams {
        // The other side may be no rank at all.
        let _ = frame::write(*stream, Kind::End, Operation::None, 0, reason.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
}

/// Connects to rank 0, on another rank.
fn reach(
    launch: &Launch,
    own: &Hello,
    address: &str,
    patience: Duration,
    wait: &mut Wait<'_>,
) -> Result<Peer, DistributedError> {
    let started = Instant::now();
    loop {
        let reason = match attempt(launch) {
            Ok(stream) => match greet(stream, own, wait) {
                Ok(peer) => return Ok(peer),
                Err(Some(sentence)) => return Err(DistributedError::Refused(sentence)),
                Err(None) => "it does not answer as a soda".to_owned(),
            },
            Err(Attempt::Resolve(source)) if started.elapsed() >= RESOLVE.min(patience) => {
                return Err(DistributedError::Resolve { name: launch.address.clone(), source });
            }
            Err(Attempt::Resolve(source) | Attempt::Connect(source)) => source.to_string(),
        };
        let rank = own.rank;
        if wait.is_over(|| format!("rank {rank} waits for rank 0 at {address} ({reason})")) {
            return Err(DistributedError::Unreachable {
                rank,
                host: own.host.clone(),
                address: address.to_owned(),
                seconds: patience.as_secs(),
                reason,
            });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why an attempt failed.
enum Attempt {
    Resolve(io::Error),
    Connect(io::Error),
}

fn attempt(launch: &Launch) -> Result<TcpStream, Attempt> {
    let addresses = (launch.address.as_str(), launch.port).to_socket_addrs();
    let mut last = io::Error::other("the name has no address");
    for address in addresses.map_err(Attempt::Resolve)? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            // A connection to a free port of this machine may be one to itself.
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {}
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(Attempt::Connect(last))
}

/// Says who this rank is, and waits until rank 0 has all ranks. `Err(None)` if the connection ends before.
fn greet(stream: TcpStream, own: &Hello, wait: &mut Wait<'_>) -> Result<Peer, Option<String>> {
    let prepared = stream
        .set_read_timeout(Some(PAUSE))
        .and_then(|()| frame::write(&stream, Kind::Hello, Operation::None, 0, &own.to_bytes()));
    prepared.map_err(|_| None)?;
    let patience = wait.until.saturating_duration_since(Instant::now()) + HELLO;
    let (rank, until) = (own.rank, wait.until + HELLO);
    let mut on_wait = || {
        wait.is_over(|| format!("rank {rank} has found rank 0, which waits for other ranks"));
    };
    let mut reader = Reader { input: &stream, patience, on_wait: &mut on_wait };
    let header = reader.header().map_err(|error| match error {
        ReadError::Silent if Instant::now() >= until => {
            Some("rank 0 waits for ranks that do not come".to_owned())
        }
        _ => None,
    })?;
    let limit = LONGEST_SENTENCE;
    let mut bytes = Vec::new();
    reader.payload(header.length, limit, &mut bytes).map_err(|_| None)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match header.kind {
        Kind::Welcome => Ok(Peer { rank: 0, host: host::readable(&text), stream }),
        Kind::End => Err(Some(text.chars().filter(|c| !c.is_control()).collect())),
        _ => Err(None),
    }
}
