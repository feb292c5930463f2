//! Real programs from the distribution, client and server on two hosts, on plain TCP and on the light protocol: the same
//! bytes, the same exit status.

use super::hosts::{Hosts, On};
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of the file that is sent about.
const BYTES: usize = 12_000_000;
/// Each test has hosts of its own, so that ports are free.
const PORT: u16 = 5000;
const SERVER: &str = "10.77.0.1";

/// Runs it on plain TCP, then on the link, where at least so many bytes must go over the light protocol.
fn both(light_bytes: u64, test: impl Fn(&Hosts, On)) {
    test(&Hosts::new(Ethernet::Never), On::Tcp);
    let hosts = Hosts::new(Ethernet::Probe);
    test(&hosts, On::Link);
    let totals = hosts.totals(Host::A);
    assert!(totals.light_bytes >= light_bytes, "{totals:?}");
    let cut: Vec<_> = totals
        .steps_back
        .keys()
        .filter(|word| {
            ["broken", "foreign-write", "peer-stuck", "light-lost"].contains(&word.as_str())
        })
        .collect();
    assert!(cut.is_empty(), "{totals:?}");
}

/// A file of bytes that do not repeat, in a host's folder.
fn data(hosts: &Hosts, host: Host) -> PathBuf {
    let path = hosts.path(host, "data");
    let mut state = 88_172_645_463_325_252u64;
    let bytes: Vec<u8> = (0..BYTES / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    fs::write(&path, bytes).unwrap();
    path
}

fn same(one: &Path, other: &Path) {
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} differs", other.display());
}

/// Servers give up being root.
fn open_to_all(hosts: &Hosts) {
    use std::os::unix::fs::PermissionsExt;
    let folder = hosts.folders[0].path();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.join("link.sock");
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn iperf3() {
    both(100_000, |hosts, on| {
        for extra in [&[][..], &["-R"], &["-P", "4"], &["-Z"], &["-R", "-P", "2", "-Z"]] {
            let mut server = hosts.serve(Host::A, on, PORT, &["iperf3", "-s", "-1", "-p", "5000"]);
            let mut words = vec!["iperf3", "-c", SERVER, "-p", "5000", "-n", "100M"];
            words.extend(extra);
            hosts.run(Host::B, on, &words);
            assert!(server.0.wait().unwrap().success(), "{extra:?} on {on:?}");
        }
    });
}

#[test]
fn netcat() {
    both(100_000, |hosts, on| {
        let data = data(hosts, Host::B);
        // Without a limit the file is there before the two ends have agreed.
        hosts.bed.limit(500, 32 * 1024).unwrap();
        // It does not read its input, whose end would end its direction: such a connection stays on TCP.
        let listen = "nc -l -d 10.77.0.1 5000 > got";
        let mut receiver = hosts.serve(Host::A, on, PORT, &["sh", "-c", listen]);
        let send = "cat data data data data | nc -N 10.77.0.1 5000";
        hosts.run(Host::B, on, &["sh", "-c", send]);
        assert!(receiver.0.wait().unwrap().success());
        let sent = fs::read(&data).unwrap().repeat(4);
        assert!(fs::read(hosts.path(Host::A, "got")).unwrap() == sent, "bytes differ");
    });
}

#[test]
fn nginx_with_curl() {
    both(100_000, |hosts, on| {
        let data = data(hosts, Host::A);
        fs::write(hosts.path(Host::A, "small"), "hello\n").unwrap();
        let folder = hosts.folders[0].path().display().to_string();
        let conf = format!(
            "daemon off; user root; worker_processes 2; pid {folder}/pid; error_log {folder}/err;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 10000;\n\
             server {{ listen {SERVER}:{PORT}; root {folder}; }} }}\n"
        );
        fs::write(hosts.path(Host::A, "conf"), conf).unwrap();
        open_to_all(hosts);
        let path = format!("{folder}/conf");
        let words = ["nginx", "-c", &path, "-p", &folder, "-e", "err"];
        let _server = hosts.serve(Host::A, on, PORT, &words);
        let url = |name: &str| format!("http://{SERVER}:{PORT}/{name}");
        let (big, small) = (url("data"), url("small"));
        let words = ["curl", "-sf", &big, &small, &big, "-o", "a", "-o", "b", "-o", "c"];
        hosts.run(Host::B, on, &words);
        for name in ["a", "c"] {
            same(&data, &hosts.path(Host::B, name));
        }
        let code = format!(
            "import http.client\nc=http.client.HTTPConnection('{SERVER}',{PORT})\n\
             for i in range(300):\n c.request('GET','/small'); assert c.getresponse().read()==b'hello\\n'\n\
             c.request('GET','/data',headers={{'Range':'bytes=1000-900000'}})\n\
             assert c.getresponse().read()==open('a','rb').read()[1000:900001]\n"
        );
        hosts.run(Host::B, on, &["python3", "-c", &code]);
    });
}

#[test]
fn redis() {
    both(100_000, |hosts, on| {
        let words = [
            "redis-server",
            "--port",
            "5000",
            "--save",
            "",
            "--bind",
            SERVER,
            "--protected-mode",
            "no",
        ];
        let _server = hosts.serve(Host::A, on, PORT, &words);
        let bench =
            ["redis-benchmark", "-h", SERVER, "-p", "5000", "-q", "-n", "10000", "-c", "10"];
        for extra in [&["-t", "set,get,lrange_100"][..], &["-t", "set", "-P", "16", "-d", "3000"]] {
            let words: Vec<_> = bench.iter().chain(extra).copied().collect();
            let out = hosts.run(Host::B, on, &words);
            assert!(!out.to_lowercase().contains("error"), "{out}");
        }
        let script = "for i in $(seq 500); do echo set k$i v$i; echo get k$i; done; echo bgsave";
        let line = format!("({script}) | redis-cli -h {SERVER} -p 5000");
        let answers = hosts.run(Host::B, on, &["sh", "-c", &line]);
        let values = answers.lines().filter(|line| line.starts_with('v')).count();
        assert_eq!(values, 500, "{answers}");
    });
}

#[test]
fn ssh_and_scp() {
    // Its server starts programs with the socket and sandboxes itself: most of it steps back to TCP.
    both(0, |hosts, on| {
        let data = data(hosts, Host::A);
        let folder = hosts.folders[0].path().display().to_string();
        fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host", "user"] {
            let words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name];
            hosts.run(Host::A, On::Tcp, &words);
        }
        fs::copy(hosts.path(Host::A, "user"), hosts.path(Host::B, "user")).unwrap();
        let conf = format!(
            "Port {PORT}\nListenAddress {SERVER}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n\
             PidFile {folder}/pid\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n"
        );
        fs::write(hosts.path(Host::A, "conf"), conf).unwrap();
        let path = format!("{folder}/conf");
        let words = ["/usr/sbin/sshd", "-D", "-f", &path, "-E", "log"];
        let _server = hosts.serve(Host::A, on, PORT, &words);
        let options = "-F none -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
        let shell = |line: String| hosts.run(Host::B, on, &["sh", "-c", &line]);
        let sum = shell(format!("ssh {options} -p {PORT} root@{SERVER} 'md5sum < {folder}/data'"));
        assert_eq!(sum, hosts.run(Host::A, On::Tcp, &["sh", "-c", "md5sum < data"]));
        shell(format!("scp {options} -P {PORT} root@{SERVER}:{folder}/data got"));
        same(&data, &hosts.path(Host::B, "got"));
        shell(format!("scp {options} -P {PORT} got root@{SERVER}:{folder}/back"));
        same(&data, &hosts.path(Host::A, "back"));
    });
}
