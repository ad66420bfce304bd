//! Who asks, and who may know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crisp::image::registry::Auth;
use crisp::image::{ErrorKind, ImageError, PullRequest};
use crisp::model::ImageId;

use crate::content::{Content, Layer, Room, chain};
use crate::server::{Reply, Request, Server};

fn content() -> Content {
    Content::image("a/b", "v1", &[Layer::new("file", 1000)])
}

fn password() -> Auth {
    Auth {
        username: "user".to_owned(),
        password: "pass:word".to_owned(),
        ..Auth::default()
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("user:pass:word"))
}

async fn pull(room: &Room, server: &Server, auth: Option<Auth>) -> Result<ImageId, ImageError> {
    room.images
        .pull(PullRequest {
            reference: format!("{}/a/b:v1", server.host()),
            auth,
        })
        .await
}

fn is_authorized(request: &Request, value: &str) -> bool {
    request.header("authorization") == Some(value)
}

/// A registry that wants tokens of `realm`.
async fn bearer_registry(realm: String) -> Server {
    let content = content();
    Server::start(move |request| {
        if is_authorized(request, "Bearer good-token") {
            return content.reply(request);
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="the service",scope="repository:a/b:pull""#);
        Reply::new(401, "{}").with("www-authenticate", challenge)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_gets_a_token_where_anybody_may_pull() {
    let tokens = Server::start(|_| Reply::new(200, r#"{"token":"good-token"}"#)).await;
    let registry = bearer_registry(format!("http://{}/token", tokens.host())).await;
    let room = Room::new().await;
    pull(&room, &registry, None).await.unwrap();
    let requests = tokens.requests();
    assert_eq!(requests.len(), 1, "one token serves the whole pull");
    assert_eq!(requests[0].query, "service=the+service&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(requests[0].header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_buys_a_token() {
    let tokens = Server::start(|request| match is_authorized(request, &basic()) {
        true => Reply::new(200, r#"{"access_token":"good-token","expires_in":60}"#),
        false => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect"}]}"#),
    })
    .await;
    let registry = bearer_registry(format!("http://{}/token", tokens.host())).await;
    let room = Room::new().await;
    let wrong = Auth {
        password: "hunter2".to_owned(),
        ..password()
    };
    let error = pull(&room, &registry, Some(wrong)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        chain(&error).contains("credentials refused") && chain(&error).contains("incorrect"),
        "{}",
        chain(&error)
    );
    assert!(!format!("{} {error:?}", chain(&error)).contains("hunter2"));

    pull(&room, &registry, Some(password())).await.unwrap();
    assert!(tokens.requests().last().unwrap().query.contains("account=user"));
    assert!(
        registry
            .requests()
            .iter()
            .all(|request| !is_authorized(request, &basic())),
        "the registry never saw it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_token_is_exchanged() {
    let tokens = Server::start(|request| {
        let expected = "grant_type=refresh_token&service=the+service&client_id=crisp\
                        &scope=repository%3Aa%2Fb%3Apull&refresh_token=identity";
        match request.method == "POST" && request.body == expected {
            true => Reply::new(200, r#"{"access_token":"good-token"}"#),
            false => Reply::new(400, "{}"),
        }
    })
    .await;
    let registry = bearer_registry(format!("http://{}/token", tokens.host())).await;
    let room = Room::new().await;
    let auth = Auth {
        identity_token: "identity".to_owned(),
        ..Auth::default()
    };
    pull(&room, &registry, Some(auth)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_token_is_sent_as_it_is() {
    let registry = bearer_registry("http://127.0.0.1:1/token".to_owned()).await;
    let room = Room::new().await;
    let auth = Auth {
        registry_token: "good-token".to_owned(),
        ..Auth::default()
    };
    pull(&room, &registry, Some(auth)).await.unwrap();
    assert!(
        registry
            .requests()
            .iter()
            .all(|request| is_authorized(request, "Bearer good-token"))
    );
    let auth = Auth {
        registry_token: "bad-token".to_owned(),
        ..Auth::default()
    };
    let error = pull(&room, &registry, Some(auth)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(!format!("{} {error:?}", chain(&error)).contains("bad-token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_authorization_by_password_and_by_the_auth_field() {
    let content = content();
    let registry = Server::start(move |request| match is_authorized(request, &basic()) {
        true => content.reply(request),
        false => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let room = Room::new().await;
    let error = pull(&room, &registry, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(chain(&error).contains("authorization required"), "{}", chain(&error));
    pull(&room, &registry, Some(password())).await.unwrap();
    let auth = Auth {
        auth: STANDARD.encode("user:pass:word"),
        ..Auth::default()
    };
    pull(&room, &registry, Some(auth.clone())).await.unwrap();
    let elsewhere = Auth {
        server_address: "https://other.example".to_owned(),
        ..auth
    };
    let error = pull(&room, &registry, Some(elsewhere)).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Denied,
        "credentials for another host are not used"
    );
    let here = Auth {
        server_address: format!("http://{}", registry.host()),
        ..password()
    };
    pull(&room, &registry, Some(here)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_in_mid_pull_is_renewed_once_for_all_layers() {
    let layers: Vec<_> = (0..6).map(|i| Layer::new(&format!("file{i}"), 1000)).collect();
    let content = Content::image("a/b", "v1", &layers);
    let issued = Arc::new(AtomicUsize::new(0));
    let counter = issued.clone();
    let tokens = Server::start(move |_| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        Reply::new(200, format!(r#"{{"token":"token-{number}"}}"#))
    })
    .await;
    let realm = format!("http://{}/token", tokens.host());
    let config_digest = crate::content::sha256(crate::content::config_of(&layers).to_string().as_bytes());
    let registry = Server::start(move |request| {
        let is_layer = request.path.contains("/blobs/") && !request.path.ends_with(&config_digest);
        let wanted = if is_layer { "Bearer token-1" } else { "Bearer token-0" };
        match is_authorized(request, wanted) {
            true => content.reply(request),
            false => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
        }
    })
    .await;
    let room = Room::new().await;
    pull(&room, &registry, None).await.unwrap();
    assert_eq!(issued.load(Ordering::Relaxed), 2);
    assert!(
        tokens.requests()[0].query.contains("scope=repository%3Aa%2Fb%3Apull"),
        "a scope that was not named"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_do_not_take_credentials_along() {
    let store = content();
    let storage = Server::start(move |request| store.reply(request)).await;
    let elsewhere = storage.host();
    let content = content();
    let registry = Server::start(move |request| {
        if !is_authorized(request, &basic()) {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
        }
        if request.path.contains("/blobs/") {
            let location = format!("http://{elsewhere}{}?signature=secret-signature", request.path);
            return Reply::new(307, "").with("location", location);
        }
        content.reply(request)
    })
    .await;
    let room = Room::new().await;
    pull(&room, &registry, Some(password())).await.unwrap();
    assert_eq!(storage.requests().len(), 2);
    for request in storage.requests() {
        assert_eq!(request.header("authorization"), None);
        assert_eq!(request.query, "signature=secret-signature");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_do_not_see_the_registry_s_credentials() {
    let mirrored = content();
    let mirror = Server::start(move |request| match request.header("authorization") {
        Some("Basic bWlycm9yOm93bg==") => mirrored.reply(request),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"mirror\""),
    })
    .await;
    let content = content();
    let registry = Server::start(move |request| match is_authorized(request, &basic()) {
        true => content.reply(request),
        false => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let room = Room::new().await;
    let host = format!("[host.\"http://{}\"]", mirror.host());
    room.configure(&registry.host(), &host);
    pull(&room, &registry, Some(password())).await.unwrap();
    assert!(!mirror.requests().is_empty());
    assert!(
        mirror
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );

    // What the configuration gives a mirror goes to that mirror, and only there.
    let own = format!(
        "{host}\n[host.\"http://{}\".header]\nauthorization = \"Basic bWlycm9yOm93bg==\"",
        mirror.host()
    );
    room.configure(&registry.host(), &own);
    let before = registry.requests().len();
    let fresh = Room::new().await;
    fresh.configure(&registry.host(), &own);
    pull(&fresh, &registry, None).await.unwrap();
    assert_eq!(registry.requests().len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_token_server_elsewhere_gets_no_password() {
    let registry = bearer_registry("http://tokens.example/token".to_owned()).await;
    let room = Room::new().await;
    let error = pull(&room, &registry, Some(password())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(chain(&error).contains("plain text"), "{}", chain(&error));
    for realm in ["ftp://x/", "not an address", "https://user:pw@h/"] {
        let registry = bearer_registry(realm.to_owned()).await;
        assert_eq!(
            pull(&room, &registry, None).await.unwrap_err().kind(),
            ErrorKind::Denied,
            "{realm}"
        );
    }
}
