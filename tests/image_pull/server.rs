//! An HTTP/1.1 server that does what a test tells it, also what no honest server does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte that a `Range` header asks for.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What follows the head of an answer.
pub enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    /// Waits until the value is `true`.
    Until(watch::Receiver<bool>),
    /// Closes the connection.
    Cut,
    /// Sends nothing more and keeps the connection.
    Hang,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// What `Content-Length` says; if not given, the length of all that is sent.
    pub length: Option<usize>,
    pub steps: Vec<Step>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            length: None,
            steps: vec![Step::Send(body.into())],
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn announcing(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

pub type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// A running server; it ends with its value.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Connections that are open now.
    pub open: watch::Receiver<usize>,
    _task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(handler), None).await
    }

    pub async fn start_tls(config: ServerConfig, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(handler), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (count, open) = watch::channel(0);
        let log = requests.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (handler, log, tls, count) = (handler.clone(), log.clone(), tls.clone(), count.clone());
                connections.spawn(async move {
                    count.send_modify(|open| *open += 1);
                    match tls {
                        None => serve(stream, handler, log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, handler, log).await;
                            }
                        }
                    }
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self {
            address,
            requests,
            open,
            _task: AbortOnDrop(task),
        }
    }

    /// Host and port, as in a reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests there were whose path ends so.
    pub fn count(&self, method: &str, suffix: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.path.ends_with(suffix))
            .count()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler, log: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        log.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        if write(&mut stream, &request, reply).await.is_none() {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

async fn read(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
    })
}

/// `None` when the connection is over.
async fn write(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &Request, reply: Reply) -> Option<()> {
    let sent = |step: &Step| if let Step::Send(bytes) = step { bytes.len() } else { 0 };
    let length = reply.length.unwrap_or_else(|| reply.steps.iter().map(sent).sum());
    let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    if request.method == "HEAD" {
        return stream.flush().await.ok();
    }
    for step in reply.steps {
        match step {
            Step::Send(bytes) => stream.write_all(&bytes).await.ok()?,
            Step::Pause(duration) => {
                stream.flush().await.ok()?;
                tokio::time::sleep(duration).await;
            }
            Step::Until(mut gate) => {
                stream.flush().await.ok()?;
                gate.wait_for(|is_open| *is_open).await.ok()?;
            }
            Step::Cut => {
                stream.flush().await.ok()?;
                return None;
            }
            Step::Hang => {
                stream.flush().await.ok()?;
                // Until the other side closes.
                let _ = stream.read_u8().await;
                return None;
            }
        }
    }
    stream.flush().await.ok()
}
