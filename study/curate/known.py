"""Public evaluation prompts, known by fingerprint: a model that is measured must not train on them.

    python -c "from study.curate import known; print(known.name_of('Who is Larry Page?'))"

Koala's test set (180), Self-Instruct's user-oriented instructions (252), Vicuna's questions (80)
and what AlpacaEval has beside them (329). A fingerprint is the first 8 hex digits of the sha256 of
the prompt in lower case, its white space collapsed: one strange prompt in five million has one.
Left out: rewordings, which BLEU finds (leakage.py).
"""

import functools
import hashlib


def fingerprint(text: str) -> str:
    """The fingerprint of a prompt, whatever its case and white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:8]


@functools.cache
def names() -> dict[str, str]:
    """{fingerprint: whose prompt it is}."""
    return {digits: name for name, text in KNOWN.items() for digits in text.split()}


def name_of(text: str) -> str | None:
    """Whose evaluation prompt a text is, or None."""
    return names().get(fingerprint(text))


KNOWN = {
    "Koala": """
        4bc7936f 32ec681a 2db5df1a 852ecbd4 de33e11b 2bff54f3 a9a77770 fcaad2cd 52bc6dfe ca5696a4
        1e687e01 7040d65f f81b4d19 b229c608 63e0376c 17039dd9 c4532210 2a652dc3 64b6b20a 83845898
        e5b6a17a 6829e45c 61e2e7b7 1bbf8f12 b51c7145 5014887d 5177316f 2b012ead 23155ed8 ae2b9b09
        24b7b462 a9a640df bf2a717e 296c6b25 dbdc8286 659c5280 46f34360 f91ca4d2 24f76685 82166e63
        61ac8cdf c9b36750 c0e7764e 6805cc29 b317a786 0470370e f97b7ce9 780d92c7 bbf4629b 38b41a8c
        84cd4afe 6868d813 c54c5923 2d2413d7 5b18de22 1447e326 0fdc2742 9885d82a 8b24eff9 01189218
        626095f8 491f418d 5f287623 6a5fa840 b17aaab1 eb35bfd8 041401d2 9b328e95 60b4ecf6 26b815ae
        6b7ab25f 850eae26 ca5b892c 5a5cff49 a4f4aec9 c4e8a668 34cd9a02 0602f7a9 c8851cd3 e674e4f0
        17963123 9bb21521 12a00364 a92e74d6 465f983d d22df2b0 0d500d26 d22ce779 b6c15ed0 550e61fa
        23f33d5d 8f5f9e08 ce25eaf1 1b29a118 51d039a9 036f4ef4 82f84b0c 0bf6e021 35e3a8bd b55e409e
        7d98ee96 1caed7c0 ddc7c413 a34893c4 59c83426 79ba1223 45a1b1ec 697e1d0d 66994896 89ebdfd2
        11a3be32 5d634151 25729a39 ccf53b32 0d7507df b118aa4b a16b5184 dec9a1fa 46920beb 77f24803
        b9f490c1 077a7894 b6784bc2 aaa1661c 66b84f46 980f50a1 95857fd9 52c83da2 c7f97032 56ca65c4
        495e2dac cdc1de41 b39bf1f9 9e3fd240 57d17193 f6e104d8 da89fbbe 4edf63ef 8bc5f531 643c057e
        2dfc631c 4afc5263 6ac9e7ba 195d100f 3d90c24e 7169b8c3 c327e8a1 b5ab1bbf 1c016974 3e20b0d4
        bae5a24c efb89e7f 98f653dd 41394f89 4321e5fe 5841afbe 6f8e151b 843e9858 708c523d b722ec3b
        41ec6bda fa18e407 46f9acc5 8f7e862c 66d24998 014c7a97 e9dc6415 cfbea796 191acd57 09939f4b
        76174ced 20bc2823 8988cb90 3e81254e db056c4e 1ee14840 56b81701 3cd0b753 54c3b0c3 4620d80c
    """,
    "Self-Instruct": """
        b26f2f05 bf8b84e8 abdae8f2 0e0484d0 447b095c 861708cb ab723f46 0017a6d7 5105bba7 aa790948
        9abd7e4a 559146a9 3cfb7e75 13f6daae a0d05ee2 0af438f8 41ff6c2b 2665bc24 e59fc538 cd93b96a
        e5adadc3 f72a9dbe b1ac1bca aa12ebe9 a40f90a9 201fabd8 2fb2f3fd 533d8b33 54ac97dc 3a96d469
        94e147b9 5f44777a 89cf72eb 0da45d98 b3e52072 9d1cf3e2 662f151b 762c4e44 78dabac2 1b17de06
        44651021 97b88512 5a8d81cf cdda7dab b1d7878a 30a5de15 fea917be b03da574 d7f5be37 1d4ab000
        f9427707 611f647f da331704 767da0ff 86f42542 eb44fa57 9c0627fd 43744f4a 4c856797 20cf80af
        ecb72fb9 e4ebab2f d412f6f2 3fda65d4 2c37965d ed83dc88 61d0bde1 d8c8c823 90af7cff a10b5579
        44af0d58 836a20ff 75eaf0fe c1a332df 37f078ed f595a2a7 efe9a6bf 2a2b2b88 3a1c6ed6 53d77e8a
        77fa6a93 8b160ee0 aaf7ad2d 552d1f50 b3bf4e95 6de7ef54 b459f918 ac5196d7 a8cf5307 b2a27b63
        9cdb7728 b1090258 6ee08798 3f409dde daf94e9c b25f74f2 80b9f529 ca206a03 ac2af481 dc6026e2
        6c1b4027 0dd4e54a 517c890d 04a67c22 7567a4e9 aa8385c3 121816e2 8a9ab875 ac64ed1e d031b71c
        5813d1b2 f7b6987a 65f2b974 a4a82ece b49fd44e 6444393d 1ef54058 e17edf84 4c0672c0 7a409055
        00ecc289 2b195ae3 9af0447b f6d1e62c 2500781d d382f228 9fa3072e dda0dabd cdc04bca c1aad674
        ccf5b21d 6f84736f 5c9c0580 15ac55f7 10e37e51 f9d65827 d6be4288 fa9a1ec6 dacb6541 28231f7c
        572cca67 c2b69e4b cdd01166 0430f469 4c0b5914 50e34d63 cad4b096 2f7ae2de 2b68c276 d4e6c77b
        8fb65fdf fe90aa59 84e74930 f47f9557 6d83d9e4 dd328ca4 01e0b832 a59b33cd bd010c4e 5224c006
        75d4838a ebc5528d 38e1fbdd 9b805527 20fa476d 972410f7 48624005 bf0dd662 3d9d5857 d61b089d
        65eb6ec3 606a7751 abeb790f fedcac1e 687677ec c213ca2f a731d6ce 765a0362 668ce3ba 824986c3
        958ce7bb 9341cc76 713f3f41 900e7ba4 b614d340 1e4830f3 b02d4ed2 e6c8d3e4 3d103ca3 9c4040fa
        761f2c2e 59c96440 792ca72d 841c9471 fbf5eb90 0b51e0dc 7fa24f47 35a9a54d bf86c1fd 6d3a6330
        55ee60a7 8fc95332 3f2899aa 630a9f2a f6dc6e71 47d88ba8 0c5ca880 b1370fb4 0dd5def3 dab63aae
        081f09f4 4a9785e8 490a06e1 6bd898bc f2a153f7 af0c1447 84441f41 cc2b9cf5 88469e4f 80a5c088
        0108a950 cee0c871 282eb870 f1678203 f0af054c f1be215f ee0de37a d6cebaa0 c385f9ca b1ee2cbe
        3682433d 5ea0dc54 d6b91e19 8c61c3fd 2936ab42 0f83d991 3077512e c7e2468c 871577b8 aa0b3751
        de4ba061 355994c0 cde4a270 0416f251 a174658f 24afdf0b 3940ea46 dc7b32f0 29bd7153 ede71160
        c703699a e3a17b60
    """,
    "Vicuna": """
        89a37fb6 0e47c9b3 24a508f7 594f25e1 5427a457 20a205ff f4ba234b 6de700d8 db8d9494 4a2cde50
        e19ea17d b0a9564e 1050f33c 84b52d16 8cc155e8 e131df7c 5cd45004 a45959ac 010cdeaf 6b6e25ba
        2aa1e2e6 2ec05589 e7e02787 18afa4de f391f8a9 f878da90 f40b4473 bd034ca8 d48de822 12e68937
        c5cadcef e63b0503 2c84b95e 81d998a0 5e194df9 924fa457 8dfa8fc0 f34713f8 2312678e 050f5c0e
        c0bfc4f5 e735710f fd89ecb9 25b849cb 1edf2ce0 8622e69f 42b138d4 24135a04 379b744c efd8601c
        9a9b9663 e5bb41a1 b1ae829e 0fd62768 a74ee3fa 4ddcd79c 5ae61128 eb1dc8b1 f73f6fd6 6570ed04
        a954b45a 2a0b1925 35e2fbf4 333f70cd 0a2aaed5 bed79aac 0e57bb7c 86f09117 cc872e96 50447c2c
        f58e267b d653c222 3e82dd0d 5eb60dc6 5bd1195e 1607a2cf 48ddde95 51619d8d 18d636af ac228d77
    """,
    "AlpacaEval": """
        fbae6d0b 12e9e490 0606a92a e5a0e6c1 b2b4f9c2 0931e617 a9b0e3c7 9dc612d8 7ef96192 bef7c38e
        b65a7668 dbb0b60c 3a0988ff 7789cbbc 446db09d 6eb37ab4 f7630b6e 5091c68e c0b8e04c d8a2b8e2
        76fa3c6c 5483df22 2d82042b 3dd181d2 862c0d0b 98bfd68e ea00c23d 57d73271 e5cac111 bb46ea87
        6ce9920d c7ba78eb b7acf68c f3973da6 2bffcc39 5f1103b0 348a75c7 ae0ee27c a38cd916 04c0a0f2
        1964204e 59776c9d 4ac034c7 91ea5333 00213b5b 7c7543b8 dd6417e5 7ef794c1 b1b2ed94 8f4f86c6
        7c703a4f c0d4679d 341630c3 8afe0e1c d62435f2 35db26a3 a44c5209 32fd1464 a939b00a 69363b64
        cfe12b35 6b0832a7 4726ff48 fc3b2f7b 668e9027 9ff718dc 0fbf135e 5baf24e9 5d3111eb bb6dcf64
        a017f328 c2dbecea 7dc42a3a a3a91677 f858495f 06464aef c847cd21 b5444188 34c73d03 a7f73d08
        8731b2b0 3ee6f160 0d9b2342 5ab79929 61da377a 19828c10 a169b5c6 bd538c74 8d0c8373 07e0c028
        5169e137 4d1a1f02 1391fe53 d1417fe9 f301257f 728cff6e 2143bdf4 3b42a4c2 3b9855a5 c4294759
        e08089ff ae01f445 3bac2a99 79becdbf 3cdaad64 eeeb5a38 b89bbd8c 34ea424a e8634e0a ac4dae10
        828ace3f 7fd538c6 b32b84dd ea7f792a 3a731544 1f444b92 6d95a9bf 67489ec9 32d998a9 6cc1e9dc
        a9d961c2 cdd2c696 665f7abb 0473b6bc 071fc445 a5b00436 cc14f0cb eb5ef3e6 6c064fa4 22945b1b
        d912228e e8271693 b4a02180 01b0a0c6 10d48aa0 f5897470 d2dfb2e6 268e56ee 00d7118e 1c709eaa
        a949a775 7ab02d2f 26abb9ae 603ea3fa 6949f920 56bd5e46 787c3c54 03f1f1a5 0c6cd201 eaac3522
        0bb096a2 92afd310 ec41b460 f7f777aa c24aaeb1 cfb78a82 e96aace8 8284db16 6b5bd651 3888172b
        f10d0ab0 5d7118af e67a1002 4e1f025a 434cbbe8 72107922 2c069683 4bb147ce d5644de4 f6deaa29
        09ce621d 89abc8b4 058e6df8 a3e43614 63feaeda 6ef514b3 97be6e83 d8db9403 d9b3146e 46b7badd
        b815b05f 4a9f9ff9 47472703 a50b86c0 abe343ef 6c06d65b 3e384841 9f998018 5aadedb7 32c66657
        222f5cce 021c9f41 3c3ff23c caa46748 da753cf1 0cf14ab4 b430e6dd d2fa631e f6e2a3ff f8b7ed76
        df703d62 a96d34f2 fea8d8b0 32586d37 73789f7a a46bd174 c864dff9 07ddf490 a490eb4b 81b8fa82
        f02685ed 730bc949 c0949b05 fc90cf74 4ec8a090 57ed4fda d64a3a43 50dfbad2 677aca3a a38e8d7e
        f57f0f55 144f17ed 62ed4b76 5dac3b61 f1e54419 83eb6d72 577d017c b03e6a6b 14c9397a 67c0947b
        8e8af907 ae2dabc6 54c2ed57 444adac0 c2b0a4c1 8fb1568f 151d0e6d d9d1cf86 e66c58a1 84045ae3
        ce189162 5f275f74 31f9cec5 7e4929a8 e66f91be 1bd4631f 25c51b61 00cfc75d 821789ba aec4e484
        6f0a2cff 37ca0751 d21911b3 cba1f986 6a31b2b3 5b1adc34 142ae9f9 edb76c19 f032d782 e8924cd0
        4acc6516 f8355e8c 4aa9405d 1395a56a 66635074 cb5f5a82 acde385a 5c37b089 621ffd5d 13fdf1d0
        2897fb3d 1e5c3afe 812ebfdb 8b755811 b328cba4 8539e796 3fbcf124 0131ff34 2f68c18d 98b6c602
        39ab67e0 ba04f5f5 d3ca776e 58c031eb f73c7720 e7862100 3abddac2 e05e2297 c35aa1e6 311e4719
        e8240c9e 05e46714 d889532f fed7d150 50f4f993 954163cf d48ca5bd f03528d2 23f32a8f 00f78346
        813564b8 7adff78a 74a5855f c8899a46 1eff685d 58e7399e 45284062 a2adaad2 941d2e20 af9ce34d
        0d5d5073 375edf6b 99d6a08a 32efe6fc d37bf185 c2ee2a13 eaba299a 79364578 601f65b9 51b8f3a5
        272b052e 8d10ddfb 67ae789a c90134e1 75b0d9cf 0fdab3d6 842e1f42 b3d00dcd 27374cc2
    """,
}
