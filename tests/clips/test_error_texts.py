"""Error texts and refusals are told from true descriptions."""

import re

import pytest

from clips.error_texts import is_error_text

ERROR_TEXTS = """
出错: Request timed out.
出错
Error
[ERROR] no answer
**Error:** no answer
{"error": {"message": "overloaded"}}
{'code': 429, 'message': 'slow down'}
{"detail": "Content Exists Risk"}
API call failed
Server error
An unexpected error occurred.
openai.RateLimitError: Error code: 429
requests.exceptions.ReadTimeout: HTTPSConnectionPool(host='api', port=443)
Traceback (most recent call last):
Requests rate limit exceeded, please try again later.
Throttling.RateQuota
You exceeded your current quota, please check your plan
insufficient_quota
429 Too Many Requests
429
503 Service Unavailable
504 Gateway Time-out
500 Internal Server Error
429 - {'error': {'code': '1302'}}
HTTP 500
HTTP Error 404: Not Found
status code: 503
Bad Gateway
Service Unavailable
<!DOCTYPE html><html><title>502</title></html>
<html>502</html>
Request timed out.
timeout
The read operation timed out
Connection error.
Connection refused
Network error
Input data may contain inappropriate content.
The response was filtered due to the prompt
Your request was rejected as a result of our safety system.
DataInspectionFailed
Access denied, please make sure your account is in good standing.
I’m sorry, but I can’t help with identifying people.
"I'm sorry, I can't help."
Sorry, I can't help with that.
I apologize, but this image cannot be described
I can't identify people in images.
I cannot assist
I'm not able to provide visual descriptions of images with real people.
I am unable to view images
I don't have access to the image
I don't see any image
I can't see the image
I'm unable to see the image
I am not able to clearly see any picture.
I'm unable to see or describe images.
I am unable to determine what the person is doing.
I'm unable to help with that.
Unfortunately, I can't see the image.
Unfortunately, I am unable to see this image.
Sorry, I'm unable to describe this.
As an AI language model, I
As a language model, I
As I am not allowed to provide descriptions
Unfortunately, the image is too dark to say anything
It seems that there is no image
It looks like you haven't uploaded an image
Please provide me with the image you would like me to describe.
None
null
N/A
nan
No description available.
错误：请求失败
错误
请求超时
超时
网络连接异常
服务器内部错误
服务器繁忙
API调用失败
图片加载失败
发生未知错误
您的账户已达到速率限制，请您控制请求频率
系统检测到输入或生成内容可能包含不安全或敏感内容
内容审核未通过
很抱歉，无法描述
非常抱歉，出现了问题
对不起
作为一个AI语言模型，我
无法识别该图片
请提供图片
Incorrect API key provided: x
Invalid API key
Unauthorized
That model is currently overloaded
This model's maximum context length is 8192 tokens
Max retries exceeded with url
You have reached your specified API usage limits.
[Errno 110] Connection timed out
Expecting value: line 1 column 1 (char 0)
list index out of range
CUDA out of memory
Unable to analyze the image
Cannot process this image
Unfortunately, I cannot help with that.
Sorry, there was an error.
Description unavailable
[API_ERROR]
获取描述失败
处理时发生错误
余额不足
该模型当前负载过高，请稍后再试
当前请求过多
图片无法加载
无法连接到服务器
由于图片模糊，我无法描述
我无法看清图片
暂无
未提供图片
""".strip().splitlines()

DESCRIPTIONS = """
The hand moves 429 pixels.
429 pixels from the left the hand opens.
500 ms without movement
The signer looks sorry.
Sorry is signed with a fist that circles on the chest.
Sorry: the right fist circles on the chest.
The hands make no error, then time out.
The rate of movement is limited; the limit is the chin.
I can see the right hand at the chin.
I cannot see the left hand; the right hand is at the chin.
I can't clearly see the left hand in this image; the right hand is raised.
I'm unable to see the left hand, but the right hand is at the chin.
I am not able to clearly see the left hand; the right hand is raised.
I am unable to determine the exact handshape, but the right hand is raised to the chin
Unfortunately, I'm unable to see the left hand; the right hand is at the chin.
You can see the right hand.
Terror in the eyes, both hands up.
Time out sign: both hands form a T.
Timeout gesture: both hands form a T.
The image shows a face blocked by the right hand.
The connection between index finger and thumb forms a ring.
Connection of both hands at the chest
Please: the flat hand circles on the chest.
The model's right hand is at the chin.
Request sign: palms up
None of the fingers are extended.
No movement; both hands rest.
Nothing moves.
As a fist, the right hand rises.
It seems the right hand is up.
Failing light; the hands are at the chest.
Status quo: both hands rest.
HTTP is fingerspelled.
Unfortunately the left hand is cropped; right hand is at the chin.
Unfortunately, I can't see the left hand; the right hand is at the chin.
Sorry, no left hand is visible. Right hand at chest.
I cannot determine the exact handshape, but the right hand is raised to the chin
You hit the left palm with the right fist.
对不起的手势：右手握拳。
“对不起”：右手握拳。
手势表示“抱歉”。
错误的手势：双手交叉。
请求的手势：双手合十。
请：右手掌心向上。
连接手腕与手肘。
无法看清左手，右手在胸前。
未检测到左手，右手在胸前。
描述：右手位于胸前。
图像中右手位于胸前。
识别到右手在胸前。
作为支撑，左手托住右手。
我看到右手在胸前。
我不能看清左手，右手在胸前
我无法确定手形，右手在胸前。
无法看清这只手，右手在胸前。
由于左手被遮挡，我无法描述左手，右手在胸前。
描述异常清晰，右手上举
无法连接双手，右手在胸前。
右手向左移动429像素，没有出错。
""".strip().splitlines()


@pytest.mark.parametrize("text", ERROR_TEXTS)
def test_error_texts(text):
    assert is_error_text(text)
    assert is_error_text(text.upper()) or re.search("[a-z]Error|[a-z]Timeout", text)  # exceptions' names: by their case


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_true_descriptions_are_kept(text):
    assert not is_error_text(text)
