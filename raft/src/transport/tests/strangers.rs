//! Handshakes that do not fit, garbage, and peers that break the rules.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_fit_is_refused_by_name() {
    let network = MemoryNetwork::new();
    let b = start(&network, 2).await;
    let turned = async |change: fn(&mut Hello)| hello_with(&network, change).await.1.turned;
    assert_eq!(turned(|_| ()).await, None);
    assert_eq!(turned(|hello| hello.cluster = Some(ClusterId(8))).await, Some(Turned::ForeignCluster));
    assert_eq!(turned(|hello| hello.target = Some(BrokerId(3))).await, Some(Turned::WrongBroker));
    assert_eq!(turned(|hello| hello.broker = BrokerId(2)).await, Some(Turned::SameBroker));
    assert_eq!(turned(|hello| hello.cluster = None).await, Some(Turned::NoCluster));
    b.transport.supersede([ClusterId(8)]);
    assert_eq!(turned(|hello| hello.cluster = Some(ClusterId(8))).await, Some(Turned::Superseded));
    assert_eq!(turned(|hello| hello.cluster = Some(ClusterId(9))).await, Some(Turned::ForeignCluster));

    let mut bytes =
        Hello { kind: ConnectionKind::Data, broker: BrokerId(1), target: None, cluster: Some(CLUSTER), incarnation: 1 }
            .encode();
    bytes[8] = 99;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    let mut stream = network.host("evil").connect(&address(2)).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut welcome = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut welcome).await.unwrap();
    let welcome = Welcome::decode(&welcome).unwrap();
    assert_eq!((welcome.turned, welcome.version), (Some(Turned::Version), PROTOCOL_VERSION));
}

/// Whoever it is: while the process that is known is alive and connected, another one of its number is turned away.
#[tokio::test(start_paused = true)]
async fn another_process_of_a_number_waits_until_the_one_that_is_there_is_gone() {
    let network = MemoryNetwork::new();
    let (a, b) = two(&network).await;
    until(&a, 2, Liveness::Alive).await;
    let another = async || {
        let bytes = Hello {
            kind: ConnectionKind::Control,
            broker: BrokerId(2),
            target: None,
            cluster: Some(CLUSTER),
            incarnation: b.transport.incarnation() ^ 1,
        };
        let mut stream = network.host("elsewhere").connect(&address(1)).await.unwrap();
        stream.write_all(&bytes.encode()).await.unwrap();
        let mut welcome = [0; HANDSHAKE_BYTES];
        stream.read_exact(&mut welcome).await.unwrap();
        Welcome::decode(&welcome).unwrap().turned
    };
    assert_eq!(another().await, Some(Turned::Taken));
    let status = a.transport.peer_status(BrokerId(2)).unwrap();
    assert_eq!((status.incarnation, status.deaths), (Some(b.transport.incarnation()), 0));
    b.transport.shutdown().await;
    until(&a, 2, Liveness::Dead).await;
    assert_eq!(another().await, None);
}

#[tokio::test(start_paused = true)]
async fn garbage_and_silence_instead_of_a_handshake_are_cut_off() {
    let network = MemoryNetwork::new();
    let _b = start(&network, 2).await;
    let mut garbage = network.host("evil").connect(&address(2)).await.unwrap();
    garbage.write_all(&[b'G'; HANDSHAKE_BYTES]).await.unwrap();
    assert!(garbage.read_u8().await.is_err());
    let start = Instant::now();
    let mut silent = network.host("evil").connect(&address(2)).await.unwrap();
    assert!(silent.read_u8().await.is_err());
    assert!(start.elapsed() < 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_dialler_refuses_a_stranger_that_welcomes_it() {
    let network = MemoryNetwork::new();
    let a = start(&network, 1).await;
    let listener = network.host("b2").listen(&address(2)).await.unwrap();
    a.transport.set_peer(BrokerId(2), address(2));
    let mut stream = listener.accept().await.unwrap();
    let mut hello = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut hello).await.unwrap();
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        turned: None,
        broker: BrokerId(3),
        cluster: Some(CLUSTER),
        incarnation: 5,
    };
    stream.write_all(&welcome.encode()).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    let why = a.transport.call(BrokerId(2), Bytes::new(), SECOND).await.unwrap_err().to_string();
    assert!(why.contains("broker 3 answers there, not 2"), "{why}");
}

/// Whether the broker closes the connection before it answers anything but `expected` bytes.
async fn is_cut_off(stream: &mut Box<dyn Stream>) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(5 * SECOND, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_exceeds_its_credit_is_disconnected() {
    let network = MemoryNetwork::new();
    let b = start(&network, 2).await;
    let (mut stream, _) = hello_with(&network, |_| ()).await;
    let stuck = target(13, 2);
    stream.write_all(&raw(Kind::Open, 1, vec![message::encode_open(stuck)])).await.unwrap();
    for index in 0..WINDOW_REQUESTS as u64 {
        let pieces = message::encode_append(&append(index, Bytes::from_static(b"x"))).unwrap();
        stream.write_all(&raw(Kind::Append, 1, pieces)).await.unwrap();
    }
    // Within its credit it is not.
    assert!(tokio::time::timeout(SECOND, stream.read_u8()).await.is_err());
    let pieces = message::encode_append(&append(64, Bytes::new())).unwrap();
    stream.write_all(&raw(Kind::Append, 1, pieces)).await.unwrap();
    assert!(is_cut_off(&mut stream).await);
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn broken_frames_and_bodies_disconnect_only_who_sent_them() {
    let network = MemoryNetwork::new();
    let (a, _b) = two(&network).await;
    let mut flipped = raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]);
    flipped[HEADER_BYTES] ^= 1;
    let mut long = raw(Kind::Ping, 0, vec![vec![0; 16].into()]);
    long[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let bad_entry = {
        let mut pieces = message::encode_append(&append(0, Bytes::from_static(b"payload"))).unwrap();
        *pieces.last_mut().unwrap() = Bytes::from_static(b"tampere");
        [raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]), raw(Kind::Append, 1, pieces)].concat()
    };
    let gap = {
        let mut request = append(7, Bytes::new());
        request.prev_log_id = Some(log_id(1, 3));
        let pieces = message::encode_append(&request).unwrap();
        [raw(Kind::Open, 1, vec![message::encode_open(target(1, 2))]), raw(Kind::Append, 1, pieces)].concat()
    };
    let votes_on_data = raw(Kind::Vote, 1, vec![Bytes::from_static(&[1])]);
    for bytes in [flipped, long, bad_entry, gap, votes_on_data, vec![0xff; 100]] {
        // Under a broker id of its own, so that it does not take another's place.
        let (mut stream, _) = hello_with(&network, |hello| hello.broker = BrokerId(66)).await;
        stream.write_all(&bytes).await.unwrap();
        assert!(is_cut_off(&mut stream).await);
    }
    assert!(a.transport.call(BrokerId(2), b"x"[..].into(), SECOND).await.is_ok());
    assert_eq!(a.transport.peer_status(BrokerId(2)).unwrap().deaths, 0);
}

#[tokio::test(start_paused = true)]
async fn entries_are_asked_for_over_the_data_connection() {
    let network = MemoryNetwork::new();
    let (one, _two) = two(&network).await;
    let wait = Duration::from_secs(5);
    let request = |from, skip| FramesRequest { group: GroupId(7), from, to: 9, skip, committed: false };
    let answer = one.transport.frames(BrokerId(2), request(3, 0), wait).await.unwrap();
    assert_eq!((answer.len(), answer[0]), (FRAMES_BYTES_MAX, 7));
    assert_eq!(one.transport.frames(BrokerId(2), request(3, 1 << 19), wait).await.unwrap().len(), FRAMES_BYTES_MAX / 2);
    let refused = one.transport.frames(BrokerId(2), request(404, 0), wait).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(BrokerId(2), why) if why.contains("404")), "{refused}");
}
