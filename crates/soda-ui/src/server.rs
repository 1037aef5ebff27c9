//! The listener.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::UiConfig;
use crate::error::UiError;
use crate::guard::Guard;
use crate::http::{Request, serve};
use crate::routes::App;
use crate::token::Token;

/// The most connections at once. A page has up to six.
const MAX_CONNECTIONS: usize = 64;

/// The time between two looks at the runs that wait.
const TURN: Duration = Duration::from_secs(1);

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    guard: Guard,
    app: App,
}

impl Server {
    /// Listens on the address of `config`.
    ///
    /// # Errors
    /// Returns an error if the address is taken or may not be used, if it is no loopback address and has no
    /// token, if the token is short, or if the folder of the runs cannot be created.
    pub fn bind(config: UiConfig) -> Result<Self, UiError> {
        let address = SocketAddr::new(config.host, config.port);
        let token = match &config.token {
            Some(token) => Token::given(token.clone())?,
            None if config.host.is_loopback() => Token::random()?,
            None => return Err(UiError::TokenRequired(address)),
        };
        let app = App::new(config)?;
        let listen = |source| UiError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, guard: Guard::new(token, address), app })
    }

    /// The address of the page with the token in it, for the browser of the user.
    pub fn url(&self) -> String {
        self.guard.first_url()
    }

    /// Answers requests until the process ends, each connection on a thread of its own.
    pub fn run(self) {
        let shared = Arc::new((self.guard, self.app));
        let turns = Arc::clone(&shared);
        std::thread::spawn(move || {
            loop {
                turns.1.advance();
                std::thread::sleep(TURN);
            }
        });
        let open = Arc::new(AtomicUsize::new(0));
        for stream in self.listener.incoming().flatten() {
            if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                // A closed connection tells the browser to try again.
                continue;
            }
            let (shared, place) = (Arc::clone(&shared), Place::take(&open));
            std::thread::spawn(move || {
                let _place = place;
                let (guard, app) = &*shared;
                let admit = |request: &Request| {
                    guard.check(request)?;
                    Ok(app.body_limit(request))
                };
                serve(stream, admit, |request| app.answer(request));
            });
        }
    }
}

/// One of the connections that are open.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
