#!/bin/sh
# Usage: tools/engines.sh [FOLDER] [PYTHON]
# Fetches other Beam engines into FOLDER (.engines), for the tests that run the pipeline on them:
#   prism                 Beam's portable Go runner, the release of the Beam in use, built by the go command
#   flink/                Flink itself, for clusters of several processes (tools/cluster.py), from the Python package index
#   beam-flink-1.19.jar   a job server with Flink 1.19 inside, put together from Maven artefacts (tools/merge_jars.py)
# The official Flink job server of the newest Beam is one jar; take it where you can and pass --flink_job_server_jar.
# Only the Go module proxy, Maven Central and the Python package index are asked, through their own clients, for exact versions with their checksums.
# An engine whose tools are missing is left out with a sentence; exit code 4 if any was.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.engines}
python=${2:-python3}
prism=v2.77.0
flink=1.19
flink_release=1.19.3
flink_hash=4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60
beam=2.70.0        # the newest runner for Flink 1.19 on Maven Central ...
job_service=2.65.0 # ... and the newest job service that fits it
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
missing=0

left_out() {
    echo "engines: $*" >&2
    missing=4
}

build_prism() {
    echo "engines: building prism $prism (about 4 minutes of processor time)" >&2
    GOBIN=$folder GOFLAGS=-trimpath go install "github.com/apache/beam/sdks/v2/go/cmd/prism@$prism"
}

write_pom() {
    cat >"$1/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>openwit</groupId> <artifactId>job-server</artifactId> <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.beam</groupId> <artifactId>beam-runners-flink-$flink</artifactId> <version>$beam</version>
    </dependency>
    <dependency>
      <groupId>org.apache.beam</groupId> <artifactId>beam-runners-java-job-service</artifactId>
      <version>$job_service</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId> <artifactId>slf4j-simple</artifactId> <version>2.0.16</version>
    </dependency>
  </dependencies>
</project>
POM
}

# -C: a wrong checksum ends it.
build_flink() {
    echo "engines: putting the Flink $flink job server together" >&2
    work=$folder/maven-flink
    mkdir -p "$work"
    write_pom "$work"
    (cd "$work" && mvn -B -q -C dependency:build-classpath -DincludeScope=runtime -Dmdep.outputFile=classpath.txt) &&
        "$python" tools/merge_jars.py "$folder/beam-flink-$flink.jar" \
            org.apache.beam.runners.flink.FlinkJobServerDriver "$(cat "$work/classpath.txt")"
}

# The package has Flink's jars and no scripts. A wrong hash ends it.
fetch_flink() {
    echo "engines: fetching Flink $flink_release (230 MB)" >&2
    package=apache-flink-libraries
    work=$folder/flink-package
    mkdir -p "$work"
    echo "$package==$flink_release --hash=sha256:$flink_hash" >"$work/requirements.txt"
    "$python" -m pip download -q --no-deps --no-binary :all: --require-hashes -r "$work/requirements.txt" -d "$work" &&
        tar xzf "$work/$package-$flink_release.tar.gz" -C "$work" "$package-$flink_release/deps" &&
        mv "$work/$package-$flink_release/deps" "$folder/flink" && rm -rf "$work"
}

if [ ! -x "$folder/prism" ]; then
    if command -v go >/dev/null; then
        build_prism || left_out "prism could not be built (see the lines above)"
    else
        left_out "prism needs the go command (https://go.dev/dl, 1.24 or newer)"
    fi
fi
if [ ! -f "$folder/beam-flink-$flink.jar" ]; then
    if command -v mvn >/dev/null && command -v java >/dev/null; then
        build_flink || left_out "the Flink job server could not be put together (see the lines above)"
    else
        left_out "Flink needs java (11 or 17) and mvn: apt install maven"
    fi
fi
if [ ! -d "$folder/flink/lib" ]; then
    fetch_flink || left_out "Flink could not be fetched (see the lines above)"
fi
exit $missing
