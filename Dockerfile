# syntax=docker/dockerfile:1
FROM rust:1-bookworm AS build
# protoc and the files that it includes are for the build of the etcd client.
RUN apt-get update \
    && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
# The caches keep what was built before, for the next build; they are no part of the image, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
    && cp target/release/oncefs /usr/local/bin/oncefs

FROM debian:bookworm-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates fuse3 \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /mnt/oncefs
COPY --from=build /usr/local/bin/oncefs /usr/local/bin/oncefs
# For mount -t fuse.oncefs.
RUN ln -s /usr/local/bin/oncefs /sbin/mount.fuse.oncefs
# Content, namespace, token and log. Without a volume they go with the container.
VOLUME /var/lib/oncefs
EXPOSE 8080
# Asks the daemon through the socket in its data directory, so it works whatever --api says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["oncefs", "status"]
# Needs --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined.
ENTRYPOINT ["oncefs"]
CMD ["mount", "-f", "/mnt/oncefs"]
