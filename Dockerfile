# docker build -t dalle .
# docker build -t dalle --build-arg BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime .   # keeps the torch of its base
# docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" dalle sample caption="a red apple"
ARG BASE=python:3.12-slim
# hadolint ignore=DL3006
FROM ${BASE}

# extras of pyproject.toml
ARG EXTRAS=data,eval,hub

WORKDIR /dalle
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY configs configs
COPY dalle dalle
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

# outputs are written here; any user may write, so that --user works
WORKDIR /work
RUN chmod 1777 /work
ENV HOME=/work
USER 1000:1000
ENTRYPOINT ["dalle"]
CMD ["--help"]
