//! The bundled model behind OpenAI's routes, on a port that the system chooses, until Enter is pressed.

use std::{error::Error, io::stdin, thread};

use mlx_genkit::{ComputeDtype, Model};
use mlxgk_server::{Options, Server};

#[allow(clippy::print_stdout, reason = "an example shows its output")]
fn main() -> Result<(), Box<dyn Error>> {
    let model = Model::bundled(ComputeDtype::Auto)?;
    let server = Server::bind(Options { port: 0, ..Options::default() })?;
    println!("http://{}/v1, until Enter is pressed", server.address());
    let stop = server.stop();
    thread::spawn(move || {
        let _ = stdin().read_line(&mut String::new());
        stop.stop();
    });
    server.run(&model)?;
    Ok(())
}
