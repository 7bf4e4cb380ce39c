# MusicGen on a Linux CPU (docs/INSTALL.md). The scripts are those that .ci/run calls, in this order.

# 3.13 on Debian 12, whose glibc 2.36 MLX's wheels run with.
FROM python:3.13-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /checkout
COPY . .
RUN packaging/build.sh python /wheels
RUN packaging/install.sh python /wheels /opt/musicgen-mlx
RUN packaging/try.sh /opt/musicgen-mlx

# The same image, so that the environment's Python is where it was.
FROM python:3.13-slim-bookworm
COPY --from=build /opt/musicgen-mlx /opt/musicgen-mlx
# Any user may keep models in the volume, for `docker run --user`.
RUN useradd --create-home --uid 1000 music && install --directory --mode 1777 /models
ENV PATH="/opt/musicgen-mlx/bin:$PATH" HF_HOME=/models
VOLUME /models
WORKDIR /music
USER 1000
ENTRYPOINT ["musicgen-mlx"]
CMD ["--help"]
