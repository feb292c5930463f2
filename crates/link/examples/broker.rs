//! A broker for one project, and the environment of programs that shall use it: `broker FOLDER`. Prints the variables, one on
//! a line, and serves until its standard input ends.

use skein_link::broker::{Broker, BrokerConfig};
use std::io::Read;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: broker FOLDER")?);
    let socket = folder.join("link.sock");
    let library = skein_link::run::library(&folder.join("lib"))?;
    let broker = Broker::start(BrokerConfig::new(socket.clone()))?;
    for (name, value) in skein_link::run::environment(&library, &socket, None) {
        println!("{}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    let mut line = String::new();
    while std::io::stdin().read_to_string(&mut line).is_err() {}
    for connection in broker.connections() {
        println!("{connection:?}");
    }
    Ok(())
}
