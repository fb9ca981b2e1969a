//! A server from its first connection to its last.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::http::HeaderValue;
use mlx_genkit::{Model, kv_cache::PrefixStore};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::{
    Error, ErrorKind, Options, Result,
    app::App,
    connections,
    engine::{self, Settings},
    queue::Queue,
    routes,
    vectors::Vectors,
};

/// How long answers may then take to reach their clients.
const FLUSH: Duration = Duration::from_secs(5);

/// A server that listens already. Clients that connect are served when it [runs](Self::run).
///
/// ```
/// use std::{io::{Read, Write}, net::TcpStream, thread};
///
/// use mlx_genkit::{ComputeDtype, Model};
/// use mlxgk_server::{Options, Server};
///
/// let model = Model::bundled(ComputeDtype::Auto)?;
/// let server = Server::bind(Options { port: 0, ..Options::default() })?;
/// let (address, stop) = (server.address(), server.stop());
/// let client = thread::spawn(move || {
///     let mut stream = TcpStream::connect(address)?;
///     stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
///     let mut answer = String::new();
///     stream.read_to_string(&mut answer)?;
///     stop.stop();
///     Ok::<_, std::io::Error>(answer)
/// });
/// server.run(&model)?;
/// assert!(client.join().unwrap()?.ends_with(r#"{"status":"ok","running":0,"waiting":0}"#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: Options,
    heeds_signals: bool,
    queue: Arc<Queue>,
    stop: watch::Sender<bool>,
}

/// Ends a server from another thread.
#[derive(Debug, Clone)]
pub struct Stop {
    queue: Arc<Queue>,
    http: watch::Sender<bool>,
}

impl Server {
    /// Listens on the address of the options.
    ///
    /// # Errors
    /// When an option is wrong, or the address is taken or not this machine's.
    pub fn bind(options: Options) -> Result<Self> {
        check(&options)?;
        let (host, port) = (options.host.as_str(), options.port);
        let failed = |e: io::Error| {
            let what = match e.kind() {
                io::ErrorKind::AddrInUse => {
                    format!(
                        "port {port} of {host} is taken by another program; choose another port"
                    )
                }
                _ => format!("cannot listen on {host}, port {port}: {e}"),
            };
            Error::new(ErrorKind::Address, what)
        };
        let listener = TcpListener::bind((host, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let queue = Arc::new(Queue::new(options.queue));
        let stop = watch::Sender::new(false);
        Ok(Self { listener, address, options, heeds_signals: false, queue, stop })
    }

    /// The address, with the port that the system chose where that was left to it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stop(&self) -> Stop {
        Stop { queue: Arc::clone(&self.queue), http: self.stop.clone() }
    }

    /// Has Ctrl-C and SIGTERM stop it, and a second one at once.
    #[must_use]
    pub fn stop_on_signals(self) -> Self {
        Self { heeds_signals: true, ..self }
    }

    /// Serves requests until it is told to stop, on this thread alone as far as the model is concerned.
    /// Requests that run then get the options' [`drain`](Options::drain) to end.
    ///
    /// # Errors
    /// When a vector of the options does not fit the model, or the system refuses threads.
    pub fn run(self, model: &Model) -> Result<()> {
        let signalled = self.heeds_signals.then(|| self.stop());
        let Self { listener, address, mut options, queue, stop, .. } = self;
        let failed =
            |e: io::Error| Error::new(ErrorKind::System, format!("the server cannot begin: {e}"));
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(failed)?;
        let context = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        if let Some(stop) = signalled {
            let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()];
            let signals = (signal(interrupt).map_err(failed)?, signal(terminate).map_err(failed)?);
            runtime.spawn(heed(signals, stop));
        }
        drop(context);
        let vectors = registered(&mut options, model)?;
        let settings = Settings {
            max_rows: options.max_rows,
            prefixes: match options.prefix_cache_mb {
                0 => None,
                megabytes => Some(PrefixStore::new(megabytes.saturating_mul(1 << 20))),
            },
            drain: options.drain,
        };
        let write_time = options.write_timeout;
        let app = Arc::new(App::new(options, address, model, vectors, Arc::clone(&queue)));
        let router = routes::router(Arc::clone(&app));
        let connections =
            runtime.spawn(connections::serve(listener, router, write_time, stop.subscribe()));
        engine::run(model, &queue, &app.metrics, &settings);
        // Whatever has become of connections by then, they end.
        let _ = runtime.block_on(async { timeout(FLUSH, connections).await });
        runtime.shutdown_background();
        Ok(())
    }
}

impl Stop {
    /// Takes no further requests, and lets those that run end.
    pub fn stop(&self) {
        self.queue.close();
        self.http.send_replace(true);
    }

    /// Takes no further requests, and ends those that run.
    pub fn stop_now(&self) {
        self.queue.abandon();
        self.stop();
    }
}

/// Stops at the first signal, and at the second at once.
async fn heed((mut interrupt, mut terminate): (Signal, Signal), stop: Stop) {
    for end in [Stop::stop, Stop::stop_now] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        end(&stop);
    }
}

/// The vectors of the options, under their names.
fn registered(options: &mut Options, model: &Model) -> Result<Vectors> {
    let vectors = Vectors::default();
    for (name, one) in std::mem::take(&mut options.vectors) {
        let wrong = |what: String| Error::new(ErrorKind::Options, what);
        one.check(model.decoder()).map_err(|e| wrong(format!("the vector {name:?}: {e}")))?;
        let put = vectors.put(&name, one);
        let (_, is_new) = put.map_err(|refusal| wrong(refusal.message().to_owned()))?;
        if !is_new {
            return Err(wrong(format!("the vector {name:?} is given twice")));
        }
    }
    Ok(vectors)
}

fn check(options: &Options) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::Options, what));
    for (number, what) in [
        (options.max_rows, "the number of sequences at once must be at least 1"),
        (options.queue, "the number of requests that may wait must be at least 1"),
        (options.max_tokens, "the number of new tokens must be at least 1"),
    ] {
        if number == 0 {
            return refuse(what);
        }
    }
    let is_graphic = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_graphic());
    if options.api_key.as_deref().is_some_and(|it| !is_graphic(it)) {
        return refuse("the API key must be letters, digits and signs of ASCII, at least one");
    }
    let is_value = |it: &str| is_graphic(it) && HeaderValue::from_str(it).is_ok();
    if options.cors_origin.as_deref().is_some_and(|it| !is_value(it)) {
        return refuse("the origin must be one such as https://example.org, or *");
    }
    Ok(())
}
