//! The protocol itself: every version, versions of the future, and bytes that are no requests.

use proptest::prelude::*;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_answers_in_every_version_it_advertises() {
    let house = House::open().await;
    let mut client = house.client().await;
    for request in Request::all_empty() {
        let api = request.api();
        for version in api.min..=api.max {
            let mut request = request.clone();
            if let Request::Produce(produce) = &mut request {
                produce.acks = 1;
            }
            client.call(request, version).await;
        }
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_version_of_api_versions_is_answered_in_version_0() {
    let house = House::open().await;
    let mut client = house.client().await;
    let future = [&[0, 0, 0, 11, 0, 18, 0, 99, 0, 0, 0, 7][..], &[255, 255, 9]].concat();
    client.stream.write_all(&future).await.unwrap();
    let api = Api::of(18).unwrap();
    let (correlation_id, Response::ApiVersions(response)) = client.receive(api, 0).await else { panic!() };
    assert_eq!((correlation_id, response.error_code), (7, 35));
    assert!(response.api_keys.iter().any(|listed| (listed.api_key, listed.max_version) == (18, api.max)));
    let produce = response.api_keys.iter().find(|listed| listed.api_key == 0).unwrap();
    assert_eq!(produce.min_version, 0, "librdkafka");
    // The connection goes on.
    client.call(Request::ApiVersions(ApiVersionsRequest::default()), 3).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_behind_a_request_are_passed_over() {
    let house = House::open().await;
    let mut client = house.client().await;
    // librdkafka 2.16 asking for all topics: the array's count as four bytes where one belongs.
    let body = [&[0, 3, 0, 13, 0, 0, 0, 7, 0, 1, b'x', 0][..], &[0, 0, 0, 0, 1, 0, 0]].concat();
    client.stream.write_all(&framed(&body)).await.unwrap();
    let (correlation_id, Response::Metadata(_)) = client.receive(Api::of(3).unwrap(), 13).await else { panic!() };
    assert_eq!(correlation_id, 7);
    house.close().await;
}

/// Sends bytes and expects that connection to be closed, and only that.
async fn refused(house: &House, what: &str, bytes: &[u8]) {
    let (mut hostile, mut other) = (house.client().await, house.client().await);
    let _ = hostile.stream.write_all(bytes).await;
    assert!(hostile.closed().await, "{what}");
    other.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as i32).to_be_bytes()[..], body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames_close_their_own_connection_only() {
    let house = House::open_with(|config| config.limits.body_timeout = Duration::from_millis(300)).await;
    let metadata = |version: u8, body: &[u8]| {
        framed(&[&[0, 3, 0, version, 0, 0, 0, 1, 255, 255][..], if version >= 9 { &[0] } else { &[] }, body].concat())
    };
    let cases: [(&str, Vec<u8>); 15] = [
        ("a frame of 2 GiB", vec![0x7f, 0xff, 0xff, 0xff]),
        ("a frame of negative length", vec![0xff, 0xff, 0xff, 0xff]),
        ("a frame just over the limit", ((16 << 20) + 1_i32).to_be_bytes().to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a TLS handshake", vec![0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1]),
        ("an empty frame", vec![0, 0, 0, 0]),
        ("half a header", framed(&[0, 3, 0])),
        ("an API that is not served", framed(&[0, 99, 0, 0, 0, 0, 0, 1, 255, 255])),
        ("a Produce of before batches", framed(&[0, 0, 0, 2, 0, 0, 0, 1, 255, 255, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("an array of 2^31-1 topics", metadata(1, &[0x7f, 0xff, 0xff, 0xff])),
        ("an array of -2^31 topics", metadata(1, &[0x80, 0, 0, 0])),
        ("a compact array of 2^32-1 topics", metadata(12, &[0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("a string longer than the frame", metadata(1, &[0, 0, 0, 1, 0x7f, 0xff])),
        ("2^32-1 tagged fields", metadata(12, &[0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("half a frame for ever", vec![0, 0, 1, 0, 0, 3]),
    ];
    for (what, bytes) in cases {
        refused(&house, what, &bytes).await;
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_and_those_too_many_are_closed() {
    let house = House::open_with(|config| {
        config.limits.connections_max = 2;
        config.kafka.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let mut idle = [house.client().await, house.client().await];
    idle[0].call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    idle[1].call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    assert!(house.client().await.closed().await, "a third");
    assert!(idle[0].closed().await && idle[1].closed().await);
    house.client().await.call(Request::ApiVersions(ApiVersionsRequest::default()), 0).await;
    house.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every API in every version, fed with what it is not.
    #[test]
    fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let body = Bytes::from(body);
        for api in APIS {
            for version in api.min..=api.max {
                let _ = Request::read(api, version, body.clone());
            }
        }
    }

    /// The same with a few bytes of a good request changed, so that it gets further.
    #[test]
    fn changed_requests_never_panic(at in 0..200usize, to in any::<u8>(), cut in 0..200usize) {
        let mut requests = Request::all_empty();
        requests.push(Request::Fetch(fetch_request(5, 0, Duration::ZERO)));
        requests.push(produce_request(0, batch_of(&[("a", 1)], None), -1));
        for request in requests {
            let api = request.api();
            for version in api.min..=api.max {
                let mut writer = Writer::new(version, api.is_flexible(version));
                request.write(&mut writer);
                let whole = writer.into_bytes();
                prop_assert_eq!(Request::read(api, version, whole.clone()).is_ok(), true);
                let mut changed = whole.to_vec();
                if let Some(byte) = changed.get_mut(at) {
                    *byte = to;
                }
                changed.truncate(changed.len().saturating_sub(cut % 5));
                let _ = Request::read(api, version, Bytes::from(changed));
            }
        }
    }
}
