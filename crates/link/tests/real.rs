//! Real programs from the distribution, on plain TCP and on the link: the same bytes, the same exit status.

mod common;

use common::{Ground, On, Running, free_port, listening};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Bytes of the file that is sent about.
const BYTES: usize = 12_000_000;

fn both(test: impl Fn(&Ground, On)) {
    for on in [On::Tcp, On::Link] {
        test(&Ground::new(), on);
    }
}

/// A file of bytes that do not repeat.
fn data(ground: &Ground) -> PathBuf {
    let path = ground.path("data");
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

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(ground: &Ground, on: On, words: &[&str]) -> String {
    let (out, status) = ground.output(on, words);
    assert_eq!(status, Some(0), "{words:?} on {on:?}: {out}");
    out
}

fn server(ground: &Ground, on: On, port: u16, words: &[&str]) -> Running {
    let running = ground.start(on, words);
    listening(port);
    running
}

#[test]
fn iperf3() {
    both(|ground, on| {
        for extra in [&[][..], &["-R"], &["-P", "4"], &["-Z"], &["-R", "-P", "4", "-Z"]] {
            let port = free_port();
            let text = port.to_string();
            let _server = server(ground, on, port, &["iperf3", "-s", "-1", "-p", &text]);
            let mut words = vec!["iperf3", "-c", "127.0.0.1", "-p", &text, "-n", "200M"];
            words.extend(extra);
            run(ground, on, &words);
        }
    });
}

#[test]
fn netcat_and_socat() {
    both(|ground, on| {
        let data = data(ground);
        for (listen, send) in [
            ("nc -l -N 127.0.0.1 PORT > got < /dev/null", "nc -N 127.0.0.1 PORT < data"),
            (
                "socat -u TCP-LISTEN:PORT,bind=127.0.0.1 CREATE:got",
                "socat -u OPEN:data TCP:127.0.0.1:PORT",
            ),
        ] {
            let port = free_port();
            let with = |words: &str| words.replace("PORT", &port.to_string());
            let mut receiver = server(ground, on, port, &["sh", "-c", &with(listen)]);
            run(ground, on, &["sh", "-c", &with(send)]);
            assert!(receiver.0.wait().unwrap().success());
            same(&data, &ground.path("got"));
        }
    });
}

/// Fetches the file in several ways, more than once over one connection, and small ones in between.
fn fetch(ground: &Ground, on: On, port: u16) {
    let url = |name: &str| format!("http://127.0.0.1:{port}/{name}");
    let (big, small) = (url("data"), url("small"));
    run(ground, on, &["curl", "-sf", &big, &small, &big, "-o", "a", "-o", "b", "-o", "c"]);
    for name in ["a", "c"] {
        same(&ground.path("data"), &ground.path(name));
    }
    same(&ground.path("small"), &ground.path("b"));
    run(ground, on, &["wget", "-q", "-O", "d", &big]);
    same(&ground.path("data"), &ground.path("d"));
    // Parts of a file, and many questions over one connection.
    let code = format!(
        "import http.client\nc=http.client.HTTPConnection('127.0.0.1',{port})\n\
         for i in range(300):\n c.request('GET','/small'); assert c.getresponse().read()==b'hello\\n'\n\
         c.request('GET','/data',headers={{'Range':'bytes=1000-900000'}})\n\
         assert c.getresponse().read()==open('data','rb').read()[1000:900001]\n"
    );
    run(ground, on, &["python3", "-c", &code]);
}

#[test]
fn nginx_with_curl_and_wget() {
    both(|ground, on| {
        data(ground);
        fs::write(ground.path("small"), "hello\n").unwrap();
        let port = free_port();
        let folder = text(ground.folder.path());
        let conf = format!(
            "daemon off; user root; worker_processes 2; pid {folder}/pid; error_log {folder}/err;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 10000;\n\
             server {{ listen 127.0.0.1:{port} deferred; root {folder}; }} }}\n"
        );
        fs::write(ground.path("conf"), conf).unwrap();
        open_to_all(ground);
        let conf = ground.path("conf");
        let words = ["nginx", "-c", text(&conf), "-p", folder, "-e", "err"];
        let _server = server(ground, on, port, &words);
        fetch(ground, on, port);
    });
}

/// Servers give up being root.
fn open_to_all(ground: &Ground) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(ground.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn apache_with_curl_and_wget() {
    both(|ground, on| {
        data(ground);
        fs::write(ground.path("small"), "hello\n").unwrap();
        open_to_all(ground);
        let port = free_port();
        let folder = text(ground.folder.path());
        let modules = "/usr/lib/apache2/modules";
        let conf = format!(
            "ServerName localhost\nServerRoot {folder}\nListen 127.0.0.1:{port}\nPidFile {folder}/pid\n\
             ErrorLog {folder}/err\nUser www-data\nGroup www-data\nDocumentRoot {folder}\nMutex posixsem\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             EnableSendfile On\nKeepAlive On\nMaxKeepAliveRequests 0\n"
        );
        fs::write(ground.path("conf"), conf).unwrap();
        let conf = ground.path("conf");
        let words = ["apache2", "-D", "FOREGROUND", "-f", text(&conf)];
        let _server = server(ground, on, port, &words);
        fetch(ground, on, port);
    });
}

#[test]
fn redis() {
    both(|ground, on| {
        let port = free_port();
        let port_text = port.to_string();
        let words = ["redis-server", "--port", &port_text, "--save", "", "--bind", "127.0.0.1"];
        let _server = server(ground, on, port, &words);
        let bench = ["redis-benchmark", "-p", &port_text, "-q", "-n", "20000", "-c", "20"];
        for extra in
            [&["-t", "set,get,lpush,lrange_100"][..], &["-t", "set", "-P", "16", "-d", "3000"]]
        {
            let words: Vec<_> = bench.iter().chain(extra).copied().collect();
            let out = run(ground, on, &words);
            assert!(!out.to_lowercase().contains("error"), "{out}");
        }
        let script = "for i in $(seq 500); do echo set k$i v$i; echo get k$i; done; echo bgsave";
        let answers = run(ground, on, &["sh", "-c", &format!("({script}) | redis-cli -p {port}")]);
        let values = answers.lines().filter(|line| line.starts_with('v')).count();
        assert_eq!(values, 500, "{answers}");
    });
}

#[test]
fn ssh_and_scp() {
    both(|ground, on| {
        let data = data(ground);
        let folder = text(ground.folder.path());
        fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host", "user"] {
            run(ground, On::Tcp, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name]);
        }
        let port = free_port();
        let conf = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n\
             PidFile {folder}/pid\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n"
        );
        fs::write(ground.path("conf"), conf).unwrap();
        let conf = ground.path("conf");
        let words = ["/usr/sbin/sshd", "-D", "-f", text(&conf), "-E", "log"];
        let _server = server(ground, on, port, &words);
        let options = "-F none -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
        let shell = |line: String| run(ground, on, &["sh", "-c", &line]);
        let sum = shell(format!("ssh {options} -p {port} root@127.0.0.1 'md5sum < {folder}/data'"));
        assert_eq!(sum, run(ground, On::Tcp, &["sh", "-c", "md5sum < data"]));
        shell(format!("scp {options} -P {port} root@127.0.0.1:{folder}/data got"));
        same(&data, &ground.path("got"));
        shell(format!("scp {options} -P {port} got root@127.0.0.1:{folder}/back"));
        same(&data, &ground.path("back"));
    });
}

#[test]
fn vsftpd_with_two_clients() {
    both(|ground, on| {
        let data = data(ground);
        fs::create_dir(ground.path("files")).unwrap();
        fs::copy(&data, ground.path("files/data")).unwrap();
        open_to_all(ground);
        let port = free_port();
        let folder = text(ground.folder.path());
        let conf = format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nanonymous_enable=YES\n\
             anon_root={folder}/files\nno_anon_password=YES\nsecure_chroot_dir={folder}/files\nbackground=NO\n"
        );
        fs::write(ground.path("conf"), conf).unwrap();
        let conf = ground.path("conf");
        let _server = server(ground, on, port, &["vsftpd", text(&conf)]);
        run(ground, on, &["curl", "-sf", "-o", "got", &format!("ftp://127.0.0.1:{port}/data")]);
        same(&data, &ground.path("got"));
        fs::remove_file(ground.path("data")).unwrap();
        let talk = "printf 'user anonymous x\\nbinary\\nget data\\nquit\\n'";
        run(ground, on, &["sh", "-c", &format!("{talk} | ftp -n -p 127.0.0.1 {port}")]);
        same(&ground.path("files/data"), &ground.path("data"));
    });
}

#[test]
fn telnet() {
    both(|ground, on| {
        let port = free_port();
        let code = format!(
            "import socket\nl=socket.create_server(('127.0.0.1',{port}))\ns,_=l.accept()\n\
             for line in s.makefile('rb'):\n s.sendall(b'heard '+line)\n"
        );
        let _server = server(ground, on, port, &["python3", "-c", &code]);
        let ask =
            "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.01; done; sleep 0.3";
        let line = format!("({ask}) | telnet 127.0.0.1 {port} 2>/dev/null");
        let mut command = ground.command(on, &["sh", "-c", &line]);
        let out = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for i in 1..=40 {
            assert!(text.contains(&format!("heard line {i}")), "line {i} on {on:?}: {text}");
        }
    });
}

#[test]
fn node() {
    both(|ground, on| {
        let data = data(ground);
        let port = free_port();
        let serve = format!(
            "require('http').createServer((q,a)=>require('fs').createReadStream('data').pipe(a)).listen({port},'127.0.0.1')"
        );
        let _server = server(ground, on, port, &["node", "-e", &serve]);
        let fetch = format!(
            "require('http').get('http://127.0.0.1:{port}/',a=>a.pipe(require('fs').createWriteStream('got')))"
        );
        run(ground, on, &["node", "-e", &fetch]);
        same(&data, &ground.path("got"));
    });
}

#[test]
fn python_tests_of_its_own() {
    both(|ground, on| {
        let suites = [
            "BasicTCPTest",
            "NonBlockingTCPTests",
            "FileObjectClassTestCase",
            "SendmsgTCPTest",
            "RecvmsgTCPTest",
            "RecvmsgIntoTCPTest",
            "NetworkConnectionBehaviourTest",
            "SendfileUsingSendfileTest",
            "TCPTimeoutTest",
            "InterruptedRecvTimeoutTest",
            "InterruptedSendTimeoutTest",
        ];
        let names: Vec<_> =
            suites.iter().map(|suite| format!("test.test_socket.{suite}")).collect();
        let mut words = vec!["python3", "-m", "unittest", "test.test_selectors", "test.test_poll"];
        words.extend(names.iter().map(String::as_str));
        run(ground, on, &words);
    });
}

/// Programs that do not run as root, as root: through `setpriv`.
fn as_user<'a>(user: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
    all.extend(words);
    all
}

#[test]
fn postgresql_with_pgbench() {
    both(|ground, on| {
        use std::os::unix::fs::PermissionsExt;
        let versions = fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
        let programs = versions.map(|entry| entry.path().join("bin")).max().unwrap();
        let program = |name: &str| programs.join(name).to_str().unwrap().to_owned();
        fs::set_permissions(ground.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        // The broker's socket is its owner's and group's; here the server is somebody else.
        let socket = fs::Permissions::from_mode(0o777);
        fs::set_permissions(ground.path("link.sock"), socket).unwrap();
        let (initdb, postgres) = (program("initdb"), program("postgres"));
        run(ground, On::Tcp, &as_user("postgres", &[&initdb, "-D", "base", "-A", "trust"]));
        let port = free_port();
        let port_text = port.to_string();
        let folder = format!("unix_socket_directories={}", text(ground.folder.path()));
        let words = [
            &*postgres,
            "-D",
            "base",
            "-p",
            &port_text,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            &folder,
            "-c",
            "fsync=off",
        ];
        let _server = server(ground, on, port, &as_user("postgres", &words));
        let pgbench = |extra: &[&str]| {
            let mut words = vec!["pgbench", "-h", "127.0.0.1", "-p", &port_text, "-U", "postgres"];
            words.extend(extra);
            run(ground, on, &words)
        };
        common::wait("the database", || {
            let words = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", &port_text];
            (ground.output(On::Tcp, &words).1 == Some(0)).then_some(())
        });
        pgbench(&["-i", "-q", "postgres"]);
        for extra in
            [&["-S", "-t", "500", "-c", "4", "postgres"][..], &["-t", "100", "-c", "4", "postgres"]]
        {
            let out = pgbench(extra);
            assert!(out.contains("number of failed transactions: 0"), "{out}");
        }
        let ask = "select repeat(i::text, 200) from generate_series(1, 5000) i";
        let psql = [
            "psql",
            "-h",
            "127.0.0.1",
            "-p",
            &port_text,
            "-U",
            "postgres",
            "-At",
            "-c",
            ask,
            "postgres",
        ];
        let expect: String = (1..=5000).map(|i: u32| i.to_string().repeat(200) + "\n").collect();
        assert!(run(ground, on, &psql) == expect, "rows on {on:?}");
    });
}

#[test]
fn mariadb_with_mysqlslap() {
    both(|ground, on| {
        let folder = text(ground.folder.path());
        let at = |name: &str, value: &str| format!("--{name}={folder}/{value}");
        let (base, socket, pid) =
            (at("datadir", "base"), at("socket", "sock"), at("pid-file", "pid"));
        let install = [
            "mysql_install_db",
            "--no-defaults",
            "--user=root",
            &base,
            "--auth-root-authentication-method=normal",
        ];
        run(ground, On::Tcp, &install);
        let port = free_port();
        let port_text = format!("--port={port}");
        let words = [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            &base,
            &socket,
            &pid,
            &port_text,
            "--bind-address=127.0.0.1",
        ];
        let _server = server(ground, on, port, &words);
        let grant = "create user t@'127.0.0.1'; grant all on *.* to t@'127.0.0.1'";
        run(ground, On::Tcp, &["mysql", "--no-defaults", &socket, "-u", "root", "-e", grant]);
        let host = ["-h", "127.0.0.1", "-u", "t", &port_text];
        let mut slap = vec!["mysqlslap", "--no-defaults"];
        slap.extend(host);
        slap.extend(["--concurrency=8", "--auto-generate-sql", "--number-of-queries=1000"]);
        run(ground, on, &slap);
        let mut ask = vec!["mysql", "--no-defaults"];
        ask.extend(host);
        ask.extend([
            "-N",
            "-e",
            "select repeat(help_topic_id, 300) from mysql.help_topic order by 1",
        ]);
        assert_eq!(run(ground, on, &ask), run(ground, On::Tcp, &ask));
    });
}

#[test]
fn open_mpi_over_tcp() {
    let ground = Ground::new();
    let source = common::program("exchange.c");
    run(&ground, On::Tcp, &["mpicc", "-O1", "-o", "exchange", text(&source)]);
    let program = ground.path("exchange");
    let only_tcp =
        ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"];
    let mut words = vec!["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4"];
    words.extend(only_tcp);
    // Waiting processes give way: there are more of them than processors.
    words.extend(["--mca", "mpi_yield_when_idle", "1", text(&program)]);
    let tcp = run(&ground, On::Tcp, &words);
    let link = run(&ground, On::Link, &words);
    assert_eq!(tcp, link);
    assert!(!tcp.trim().is_empty());
    let totals = ground.broker.totals();
    assert!(totals.ring_bytes > 10_000_000, "{totals:?}");
}

#[test]
fn java() {
    both(|ground, on| {
        let data = data(ground);
        let port = free_port().to_string();
        fs::write(ground.path("Serve.java"), SERVE_JAVA).unwrap();
        fs::write(ground.path("Fetch.java"), FETCH_JAVA).unwrap();
        let _server = server(ground, on, port.parse().unwrap(), &["java", "Serve.java", &port]);
        run(ground, on, &["java", "Fetch.java", &port]);
        same(&data, &ground.path("got"));
    });
}

/// Answers each line with the file, through channels that do not block.
const SERVE_JAVA: &str = r#"
import java.net.*; import java.nio.*; import java.nio.channels.*; import java.nio.file.*;
public class Serve {
  public static void main(String[] a) throws Exception {
    byte[] file = Files.readAllBytes(Path.of("data"));
    Selector s = Selector.open();
    ServerSocketChannel l = ServerSocketChannel.open();
    l.bind(new InetSocketAddress("127.0.0.1", Integer.parseInt(a[0])));
    l.configureBlocking(false);
    l.register(s, SelectionKey.OP_ACCEPT);
    while (true) {
      s.select();
      for (SelectionKey k : s.selectedKeys()) {
        if (k.isAcceptable()) {
          SocketChannel c = l.accept();
          c.configureBlocking(false);
          c.register(s, SelectionKey.OP_READ);
        } else if (k.isReadable()) {
          int n = ((SocketChannel) k.channel()).read(ByteBuffer.allocate(100));
          if (n < 0) { k.channel().close(); continue; }
          k.attach(ByteBuffer.wrap(file));
          k.interestOps(SelectionKey.OP_WRITE);
        } else if (k.isWritable()) {
          ByteBuffer b = (ByteBuffer) k.attachment();
          ((SocketChannel) k.channel()).write(b);
          if (!b.hasRemaining()) k.interestOps(SelectionKey.OP_READ);
        }
      }
      s.selectedKeys().clear();
    }
  }
}
"#;

const FETCH_JAVA: &str = r#"
import java.io.*; import java.net.*; import java.nio.file.*;
public class Fetch {
  public static void main(String[] a) throws Exception {
    long size = Files.size(Path.of("data"));
    try (Socket s = new Socket("127.0.0.1", Integer.parseInt(a[0]))) {
      for (int i = 0; i < 3; i++) {
        s.getOutputStream().write("go\n".getBytes());
        byte[] got = s.getInputStream().readNBytes((int) size);
        Files.write(Path.of("got"), got);
      }
    }
  }
}
"#;
