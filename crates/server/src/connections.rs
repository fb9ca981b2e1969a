//! Connections: accepted up to a number, read within limits of time, and ended in good order.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::sleep,
};

use crate::write_timeout::WriteTimeout;

/// Connections at once; further ones wait to be accepted.
const MOST: usize = 256;
/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(20);
/// How long to wait where the system has no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until it is told to stop, and those that are in a request then until its end. A client
/// that reads nothing for `write_time` while there is something to read is one that has left.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    write_time: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            _ = stop.wait_for(|it| *it) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|it| *it) => break,
        };
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        // A token is not to wait for the next.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(WriteTimeout::new(stream, write_time)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no concern of ours.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
