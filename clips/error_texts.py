"""API errors, refusals and words for "nothing" that stand in place of a description."""

import re

# What an API error or a model's refusal leaves in place of a description. Only the beginning of a text is matched,
# since a true description may contain any of these words. Leading punctuation ("[", "{'", "**") is skipped; case is
# ignored.
_SOURCE = r"(?:api|call|client|https?|internal|model|network|operation|read|requests?|server|system|unexpected|unknown)"
_SOURCE_ZH = (
    r"(?:api|模型|接口|服务器?|网络|请求|调用|连接|获取|生成|描述|处理|识别|分析|图[片像](?:加载|下载|读取|上传)?)"
)
_IMAGE = r"(?:frame|image|photo|picture|video)"
_THE = r"(?:an?|any|the|this|your)"
_NO_IMAGE = rf"(?:there (?:is|was) )?no {_IMAGE}\b"
_CANNOT = r"(?:can ?not|can't|could not|couldn't)"
_I_CANNOT = rf"I(?: {_CANNOT}|(?: am|'m) (?:not able|unable) to)"
# A true description may begin with what it cannot tell: I cannot determine the handshape, but the right ...
_HEDGE = r"(?:\w+ )?(?:see\b|(?:determine|discern|make out|tell)\b.*[,;.] \w)"
_SORRY = r"(?:sorry|unfortunately)\W+(?:but\W+)?"
_CANNOT_ZH = r"(?:[无無]法|不能|没法)"
_DO_ZH = r"(?:识别|描述|分析|处理|查看|提供|访问|回答|生成|获取|读取)"
_ERROR_BEGINNINGS = (
    # Error code: 429 ... | An unexpected error occurred | Request timed out. | openai.RateLimitError: ...
    rf"(?:an? |the )?(?:{_SOURCE}[\W_]+){{0,3}}(?:error|exception|failed|time-?out|timed out)\b(?! (?:gesture|sign))",
    r"(?-i:[A-Za-z_.]+(?:Error|Exception|Timeout)\b)|traceback",
    r"(?:the )?connection (?:was )?(?:aborted|closed|error|refused|reset|timed)|https?connectionpool",
    # Max retries exceeded | [Errno 110] ... | Expecting value: line 1 column 1 | list index out of range
    r"max(?:imum)? retries|errno \d|(?:list|string|tuple) index out of range|(?:cuda )?out of memory",
    r"(?:expecting|extra data|invalid|unterminated)[^:]{0,60}: line \d+ column \d",
    # HTTP 503 | status code: 500 | 429 Too Many Requests, but not 429 pixels | {'code': 429, ... | <html>
    r"(?:(?:https?(?:/[\d.]+)?|status|code)\W+){1,3}[45]\d\d\b|(?:bad )?gateway|service (?:temporarily )?unavailable",
    r"[45]\d\d\b\W*(?:$|bad|client|error|forbidden|gateway|internal|not found|server|service|too many|unauth|you )",
    r"""(?:code|detail|message)["']\s*:|(?:doctype )?html\b""",
    # Invalid API key | That model is currently overloaded | This model's maximum context length is 8192 tokens
    r"(?:incorrect|invalid|missing|no) (?:api|authentication|request|token|url)\b|unauthori[sz]ed\b",
    r"(?:(?:that|the|this) )?model(?:'s maximum context| is (?:\w+ )?(?:busy|overloaded|not available|unavailable)\b)",
    # Rate limit reached | You exceeded your current quota, but not: You hit the palm | Input data may contain ...
    r"(?:api |requests? |tokens? )?(?:rate[ _-]?limit|throttl|too many requests)|insufficient[ _](?:balance|quota)",
    r"you(?:'ve| have)? (?:exceeded\b|(?:hit|reached) (?:the|your) (?:\w+ ){0,3}(?:limit|quota))",
    r"access denied|content exists risk|content[ _]filter|data_?inspection",
    r"(?:the |your )?(?:input|output|prompt|request|response)\b.{0,60}\b(?:filtered|inappropriate|not allowed|reject)",
    # I'm sorry, but ... | Sorry, I ..., but not: Sorry, no left hand is visible | I apologize | As an AI model
    r"I(?:'m| am) (?:(?:so|very) )?(?:afraid|an ai|not allowed|sorry)\b|as I am (?:not|unable)\b",
    rf"I(?:'m| am) (?:not able|unable)\b(?! to {_HEDGE})",
    rf"{_SORRY}(?:(?!{_I_CANNOT} {_HEDGE})I\b|(?:can't|cannot|unable|we|your)\b|{_NO_IMAGE})",
    rf"{_SORRY}(?:there (?:has been|is|was) )?{_THE} (?:\w+ )?(?:error|{_IMAGE})\b",
    r"I apologi[sz]e|(?:my )?apologies",
    r"as an? (?:ai|artificial|(?:large )?(?:language|multimodal|text|vision) (?:assistant|model))\b",
    # I can't assist, but not: I can't see the left hand | I don't see any image | No image provided | Please upload
    rf"I (?:{_CANNOT}|will not|won't)\b(?! {_HEDGE})|I (?:do not|don't) have\b",
    rf"(?:{_SORRY})?(?:{_I_CANNOT}|I do not|I don't) (?:\w+ )?see (?:or \w+ )?(?:{_THE} )?{_IMAGE}",
    # Unable to analyze the image, but not: Cannot see the left hand
    rf"(?:{_CANNOT}|unable to) \w+ (?:{_THE} )?(?:\w+ )?{_IMAGE}",
    rf"(?:it (?:appears|looks like|seems) (?:that )?)?{_NO_IMAGE}",
    r"please (?:attach|provide|send|share|try again|upload)\b|it (?:looks|seems) like you\b",
    # A script's word for "nothing".
    r"(?:n/a|nan|no description(?: available)?|description (?:is )?(?:not available|unavailable))\W*$",
    r"(?:none|null|undefined|暂?无描述|暂无(?:数据|内容)?)\W*$",
    # 出错: ... | 错误, but not 错误的 | 请求超时 | 服务器内部错误 | 处理时发生错误, but not 描述异常清晰
    r"出[错錯]|[错錯][误誤](?![的地])|超时(?:$|[,，。:：!！\s])|(?:发生|出现)了?(?:未知)?(?:错误|异常)",
    rf"{_SOURCE_ZH}{{1,3}}\s*(?:过程中|时)?(?:发生|出现)?了?(?:内部|未知)?(?:超时|出错|错误|繁忙|失败|异常(?![^\W请])|过于频繁)",
    # 图片无法加载 | 无法连接到服务器, but not 无法连接手腕 | 该模型当前负载过高 | 当前请求过多 | 余额不足
    rf"图[片像]{_CANNOT_ZH}(?:加载|下载|读取|打开|显示|访问)(?!\w)|{_CANNOT_ZH}连接(?:[到至上])?(?:api|服务|模型|接口|网络)",
    r"[该此]?(?:模型|服务器?|系统|接口)?(?:当前|目前)?(?:负载|请求|访问)(?:量|数)?[过太][高多大]|(?:账户)?(?:余额|额度|配额)不足",
    # 您的账户已达到速率限制 | 系统检测到 ...
    r"您的(?:账户|帐户|账号)|已?(?:达到|超过|超出)\w{0,6}(?:速率|频率|配额|限额)|速率限制|系统检测到|内容(?:违规|审核)",
    # 抱歉，... | 对不起，我无法 ..., but not 对不起的手势 | 我无法 ..., but not 我不能看清左手 | 作为AI
    r"(?:很|非常|十分)?(?:抱歉|[对對]不起|不好意思)(?:[,，]|[。.!！:：…\s]*(?:$|[您你但我该暂]|[无無]法|不能|由于|目前))",
    rf"我(?:{_CANNOT_ZH}(?!看|(?:判断|确定|分辨).*[,，;；。]\s*\w)|没有(?:办法|能力)|看不到(?:图|任何))",
    r"作为(?:一[个名款])?\s*(?:ai|人工智能|大?语言|大?模型)",
    # 无法识别该图片, but not 无法看清左手 | 由于图片模糊，我无法描述 | 请提供图片
    rf"(?:由于[^,，。]{{1,20}}[,，]\s*)?我?{_CANNOT_ZH}{_DO_ZH}(?:\W*$|[该此这图您]|人物|内容|请求)",
    rf"我?{_CANNOT_ZH}看[清到见](?:[该此这您]\w{{0,3}})?图",
    r"请您?(?:提供|上传|发送|重新上传|稍后|重试)|(?:未|没有)(?:提供|找到|收到|上传)(?:任何)?图",
)
_ERROR_TEXT = re.compile(rf"[\W_]*+(?:{'|'.join(_ERROR_BEGINNINGS)})", re.IGNORECASE)
_BEGINNING = 400  # characters to match, to bound the time per text


def is_error_text(text: str) -> bool:
    """Return whether a text begins like an API error, a refusal or a word for "nothing".

    >>> is_error_text("出错: Error code: 429 - {'error': {'message': 'rate limit'}}")
    True
    >>> is_error_text("I'm sorry, but I can't help with that.")
    True
    >>> is_error_text("429 pixels from the left, the hand stops; the signer looks sorry.")
    False
    """
    return _ERROR_TEXT.match(text[:_BEGINNING].replace("’", "'")) is not None
