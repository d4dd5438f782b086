"""The container formats that are read: all of FFmpeg's demuxers that hold moving pictures and open no second file.

The list was made from FFmpeg's sources (9.0, libavformat): a demuxer is left out when it calls io_open, avio_open,
avformat_open_input or ffurl_open with a name that comes from the file or is derived from the file's own name. Those
are concat, dash, hls, imf, image2 and the image pipes, mlv (its .M00, .M01, …), vobsub, sdp, rtp, rtsp, sap, dvdvideo
and webm_dash_manifest. mov opens files by data references only where the option enable_drefs is set, which nobody
does. Also left out: capture devices and lavfi, script hosts (avisynth, vapoursynth), raw samples whose size
the file does not say (rawvideo, v210), text that is drawn (tty, bin, xbin), audio, subtitles and still images.
"""

# ISO media (mov), Matroska, AVI and so on: what cameras, phones, recorders, archives and web sites write.
CONTAINERS = (
    "mov mp4 m4a 3gp 3g2 mj2 matroska webm avi asf asf_o flv live_flv kux mpeg mpegts ogg mxf gxf nut wtv rm ivr dhav "
    "dv lxf pva ty nsv nuv pmp amv vivo ifv iv8 hxvs ivf gif apng yuv4mpegpipe mpjpeg smjpeg swf msnwctcp mtv "
    "luodat lvf lmlm4 mgsts sdr2 ser cine r3d pdv jpegxl_anim vc1test filmstrip"
).split()

# A coded video stream without a container.
STREAMS = (
    "h261 h263 h264 hevc vvc evc m4v mpegvideo obu av1 vc1 cavsvideo avs2 avs3 dirac dnxhd mjpeg mjpeg_2000 ingenient "
    "apv ipu simbiosis_imx"
).split()

# Films of games and old animation programs.
ANIMATIONS = (
    "4xm anm argo_brp avs bethsoftvid bfi bink bmv c93 cdg cdxl dfa dsicin dxa ea film_cpk flic frm gdv hnm "
    "idcin iff ipmovie jv mm mods moflex mv mvi mxg nc paf psxstr rl2 roq rpl sga siff smk smush thp tiertexseq "
    "tmv txd usm vividas vmd wc3movie wsvqa xmv yop"
).split()

ALLOWED_FORMATS = (*CONTAINERS, *STREAMS, *ANIMATIONS)
