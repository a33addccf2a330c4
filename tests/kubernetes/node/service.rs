//! Stands for kube-proxy: connections to the address of a service reach one of its ready pods.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time;

use super::volumes::items;
use super::{SYNC, Shared};
use crate::site::path_in;

/// Relays for every port of every service of the namespace, from when the service is there.
pub(super) async fn relay_all(shared: Arc<Shared>) {
    let mut relays = BTreeMap::new();
    loop {
        for service in shared.api.list(&path_in(&shared.namespace, "services")).await {
            let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
            for port in items(&service["spec"]["ports"]) {
                let number = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
                let key = (address.clone(), number);
                if address == "None" || relays.contains_key(&key) {
                    continue;
                }
                let listener = TcpListener::bind((address.as_str(), number)).await.unwrap_or_else(|error| {
                    panic!("the service's {address}:{number}: {error}");
                });
                let mut relay = JoinSet::new();
                let selector = service["spec"]["selector"].clone();
                relay.spawn(serve(Arc::clone(&shared), listener, selector, port["targetPort"].clone()));
                relays.insert(key, relay);
            }
        }
        time::sleep(SYNC).await;
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, selector: Value, port: Value) {
    let mut connections = JoinSet::new();
    for turn in 0.. {
        let Ok((client, _)) = listener.accept().await else { continue };
        let addresses = endpoints(&shared, &selector, &port);
        // As where no endpoint is: refused.
        let Some(&address) = addresses.get(turn % addresses.len().max(1)) else { continue };
        connections.spawn(relay(client, address));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(mut client: TcpStream, address: SocketAddr) -> io::Result<()> {
    let mut pod = TcpStream::connect(address).await?;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await?;
    Ok(())
}

fn endpoints(shared: &Shared, selector: &Value, port: &Value) -> Vec<SocketAddr> {
    let ready = shared.ready.borrow();
    let wanted = selector.as_object().expect("a service with a selector");
    let selected = ready
        .iter()
        .filter(|(_, pod)| wanted.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value));
    let containers = shared.containers.borrow();
    let of_pod = |name: &str| {
        let mut own = containers.iter().filter(|((pod, _), _)| pod == name);
        own.find_map(|(_, container)| container.address(port))
    };
    selected.filter_map(|(name, _)| of_pod(name)).collect()
}
