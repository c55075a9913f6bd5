# syntax=docker/dockerfile:1
FROM rust:1.95-slim-bookworm AS build
# The tokenizers crate builds C and C++.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The commit, for /info and verdict_build_info: there is no .git in here.
ARG VERDICT_COMMIT=""
ENV VERDICT_COMMIT=${VERDICT_COMMIT}
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    scripts/image.sh /out

FROM debian:bookworm-slim
COPY --from=build /out /
# No name is needed: nothing is written, so the root file system may be read-only.
USER 65532:65532
# Inside a container the loopback address would serve nobody.
ENV VERDICT_HOST=0.0.0.0 \
    VERDICT_LOG_FORMAT=json
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Alive, not ready: a restart mends a stuck engine, and would only prolong a start.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${VERDICT_ADMIN_PORT:-9090} && printf 'GET /livez HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["verdict"]
CMD ["serve"]
